/* Gradient of attention over the selected blocks, (M18): dQ query by query, dK and dV key by key
 * from the queries that the reverse index lists. */
#include "backend/ref/ref_backend.h"
#include "backend/ref/ref_gradient.h"
#include "ops/reverse_index.h"

size_t msa__ref_attend_backward_workspace(const msa_context *ctx,
                                          const msa_attend_backward_args *args)
{
    (void)ctx;
    (void)args;
    return 0;
}

static void query_gradient(const msa_attend_backward_args *args, const ref_attention *at,
                           int32_t seq, int64_t i, int64_t h, int64_t position)
{
    int64_t dim = args->q.shape[2], r = h / at->group;
    const int32_t *row = ref_i32_at(&args->blocks, i, r);
    double dq[REF_MAX_HEAD_DIM] = {0};
    for (int64_t k = 0; k < args->blocks.shape[2] && row[k] >= 0; k++) {
        int64_t first = (int64_t)row[k] * args->block_size, end = first + args->block_size;
        for (int64_t j = first; j < end && j <= position; j++) { /* (M10) */
            ref_pair pair = ref_pair_at(at, seq, i, h, j);
            ref_add_row(dq, pair.ds, ref_lane_row(at->kv, &at->kv->k, seq, j, r), dim);
        }
    }
    ref_write_head(&args->dq, i, h, dq, 0);
}

/* Key j of a sequence, in the block with this number; its queries start at first_position. */
static void key_gradient(const msa_attend_backward_args *args, const ref_attention *at, int32_t seq,
                         int64_t number, int64_t r, int64_t j)
{
    int64_t first_query = args->cu_seqlens_q[seq], end_query = args->cu_seqlens_q[seq + 1];
    int64_t first_position = msa__kv_length(at->kv, seq) - (end_query - first_query);
    double dk[REF_MAX_HEAD_DIM] = {0}, dv[REF_MAX_HEAD_DIM] = {0};
    msa__block_queries queries = msa__queries_of(&args->index, r, number);
    for (int64_t e = 0; e < queries.n; e++) {
        int64_t i = queries.rows[e], position = first_position + i - first_query; /* (M2) */
        if (j <= position) ref_add_key_gradient(at, seq, i, r, j, dk, dv);
    }
    ref_write_head(&args->dk, ref_first_key(at->kv, seq) + j, r, dk, args->accumulate);
    ref_write_head(&args->dv, ref_first_key(at->kv, seq) + j, r, dv, args->accumulate);
}

msa_status msa__ref_attend_backward(msa_context *ctx, const msa_attend_backward_args *args,
                                    void *workspace)
{
    (void)ctx;
    (void)workspace;
    const int32_t *cu = args->cu_seqlens_q;
    int64_t n_heads = args->q.shape[1], n_groups = args->blocks.shape[1], number = 0;
    ref_attention at = {&args->q,  &args->out,         &args->lse,         &args->d_out,
                        &args->kv, n_heads / n_groups, (double)args->scale};
    if (!args->accumulate) {
        ref_clear_rows(&args->dk);
        ref_clear_rows(&args->dv);
    }
    for (int32_t s = 0; s < args->kv.n_seqs; s++) {
        int64_t n_keys = msa__kv_length(&args->kv, s);
        int64_t first_position = n_keys - (cu[s + 1] - cu[s]); /* (M2) */
        for (int64_t i = cu[s]; i < cu[s + 1]; i++) {
            for (int64_t h = 0; h < n_heads; h++) {
                query_gradient(args, &at, s, i, h, first_position + i - cu[s]);
            }
        }
        for (int64_t j = 0; j < n_keys; j++) {
            for (int64_t r = 0; r < n_groups; r++) {
                key_gradient(args, &at, s, number + j / args->block_size, r, j);
            }
        }
        number += msa__n_blocks(&args->kv, s, args->block_size);
    }
    return MSA_OK;
}
