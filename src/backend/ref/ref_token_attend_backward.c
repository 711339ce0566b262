/* Gradient of attention over listed tokens, (M18): pair by pair, dK and dV summed in double. */
#include "backend/ref/ref_backend.h"
#include "backend/ref/ref_gradient.h"

#include <string.h>

/* Sums of dK and dV, [rows of k, Hkv, D] each. */
static int64_t sum_elements(const msa_token_attend_backward_args *args)
{
    return args->kv.k.shape[0] * args->kv.k.shape[1] * args->kv.k.shape[2];
}

size_t msa__ref_token_attend_backward_workspace(const msa_context *ctx,
                                                const msa_token_attend_backward_args *args)
{
    (void)ctx;
    return 2 * (size_t)sum_elements(args) * sizeof(double);
}

static void differentiate_row(const msa_token_attend_backward_args *args, const ref_attention *at,
                              int32_t seq, int64_t i, int64_t h, double *dk)
{
    const int32_t *row = (const int32_t *)args->tokens.data + i * args->tokens.stride[0];
    int64_t dim = args->q.shape[2], r = h / at->group;
    double dq[REF_MAX_HEAD_DIM] = {0}, *dv = dk + sum_elements(args);
    for (int64_t n = 0; n < args->tokens.shape[1] && row[n] >= 0; n++) {
        ref_pair pair = ref_pair_at(at, seq, i, h, row[n]);
        int64_t key = ((ref_first_key(at->kv, seq) + row[n]) * args->kv.k.shape[1] + r) * dim;
        ref_add_row(dq, pair.ds, ref_lane_row(at->kv, &at->kv->k, seq, row[n], r), dim);
        ref_add_row(dk + key, pair.ds, ref_tensor_row(at->q, i, h), dim);
        ref_add_row(dv + key, pair.p, ref_tensor_row(at->d_out, i, h), dim);
    }
    ref_write_head(&args->dq, i, h, dq, 0);
}

msa_status msa__ref_token_attend_backward(msa_context *ctx,
                                          const msa_token_attend_backward_args *args,
                                          void *workspace)
{
    (void)ctx;
    const int32_t *cu = args->cu_seqlens_q;
    int64_t n_kv_heads = args->kv.k.shape[1], dim = args->q.shape[2], n = sum_elements(args);
    double *dk = workspace, *dv = dk + n;
    ref_attention at = {&args->q,           &args->out, &args->lse,
                        &args->d_out,       &args->kv,  args->q.shape[1] / n_kv_heads,
                        (double)args->scale};
    memset(dk, 0, 2 * (size_t)n * sizeof(double));
    for (int32_t s = 0; s < args->kv.n_seqs; s++) {
        for (int64_t i = cu[s]; i < cu[s + 1]; i++) {
            for (int64_t h = 0; h < args->q.shape[1]; h++) {
                differentiate_row(args, &at, s, i, h, dk);
            }
        }
    }
    for (int64_t j = 0; j < args->kv.k.shape[0]; j++) {
        for (int64_t r = 0; r < n_kv_heads; r++) {
            ref_write_head(&args->dk, j, r, dk + (j * n_kv_heads + r) * dim, 0);
            ref_write_head(&args->dv, j, r, dv + (j * n_kv_heads + r) * dim, 0);
        }
    }
    return MSA_OK;
}
