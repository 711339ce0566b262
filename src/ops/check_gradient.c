/* See check_gradient.h. */
#include "ops/check_gradient.h"

#include "ops/backend.h"

#include <string.h>

msa_status msa__check_trains(const msa__check *at, const msa_context *ctx, int has_operator)
{
    if (has_operator) return MSA_OK;
    return MSA_FAIL(MSA_EUNSUPPORTED, "%s: backend = %s, does not have this operator", at->op,
                    ctx->backend->name);
}

static msa_status check_shape(const msa__check *at, const char *name, const msa_tensor *t,
                              const msa_tensor *like, const char *meaning)
{
    for (int32_t i = 0; i < like->n_dims; i++) {
        MSA_TRY(msa__check_dim(at, name, t, i, like->shape[i], meaning));
    }
    return MSA_OK;
}

msa_status msa__check_like(const msa__check *at, const char *name, const msa_tensor *t,
                           const msa_tensor *like, const char *meaning)
{
    MSA_TRY(msa__check_tensor(at, name, t, like->n_dims, MSA__DTYPES_FLOAT));
    return check_shape(at, name, t, like, meaning);
}

msa_status msa__check_result_like(const msa__check *at, const char *name, const msa_tensor *t,
                                  const msa_tensor *like, const char *meaning, uint32_t dtypes)
{
    MSA_TRY(msa__check_output(at, name, t, like->n_dims, dtypes));
    return check_shape(at, name, t, like, meaning);
}

msa_status msa__check_optional_like(const msa__check *at, const char *name, msa_tensor *t,
                                    const msa_tensor *like, const char *meaning, uint32_t dtypes)
{
    if (!msa__is_absent(at, t)) {
        return msa__check_result_like(at, name, t, like, meaning, dtypes);
    }
    memset(t, 0, sizeof(*t));
    return MSA_OK;
}
