/* The table of the reference backend: every operator in plain scalar C. */
#include "ops/backend.h"

#include "base/error.h"

#include <stddef.h>

static msa_status open_ref(msa_context *ctx, const char *isa)
{
    (void)ctx;
    (void)isa; /* the reference has one path on every machine */
    return MSA_OK;
}

static const char *ref_isa(const msa_context *ctx)
{
    (void)ctx;
    return "scalar";
}

const msa__backend msa__ref_backend = {
    .name = "ref",
    .open = open_ref,
    .isa = ref_isa,
};
