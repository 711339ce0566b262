/* See check_tokens.h. */
#include "ops/check_tokens.h"

#include "ops/kv_tile.h"

msa_status msa__check_tokens(const msa__check *at, const msa_tensor *tokens, int64_t n_tokens)
{
    MSA_TRY(msa__check_tensor(at, "tokens", tokens, 2, MSA__DTYPES_I32));
    return msa__check_dim(at, "tokens", tokens, 0, n_tokens, "q's T");
}

/* One row: unique positions, ascending, at most the token's own, then -1 to the end. */
static msa_status check_row(const msa__check *at, const int32_t *row, int64_t n, int64_t token,
                            int64_t position)
{
    int64_t previous = -1;
    for (int64_t k = 0; k < n; k++) {
        int64_t low = previous == -2 ? -1 : previous + 1; /* -2: the row has ended */
        int64_t high = previous == -2 ? -1 : position;
        if (row[k] == -1) {
            previous = -2;
        } else if (row[k] >= low && row[k] <= high) {
            previous = row[k];
        } else {
            return MSA_FAIL(MSA_EINVAL,
                            "%s: tokens[%lld][%lld] = %d, must ascend within 0..%lld and end in -1",
                            at->op, (long long)token, (long long)k, row[k], (long long)position);
        }
    }
    return MSA_OK;
}

msa_status msa__check_token_rows(const msa__check *at, const msa_tensor *tokens,
                                 const msa_kv_view *kv, const int32_t *cu)
{
    for (int32_t s = 0; msa__can_read(at) && s < kv->n_seqs; s++) {
        int64_t first_position = msa__kv_length(kv, s) - (cu[s + 1] - cu[s]); /* (M2) */
        for (int64_t i = cu[s]; i < cu[s + 1]; i++) {
            MSA_TRY(check_row(at, (const int32_t *)tokens->data + i * tokens->stride[0],
                              tokens->shape[1], i, first_position + i - cu[s]));
        }
    }
    return MSA_OK;
}
