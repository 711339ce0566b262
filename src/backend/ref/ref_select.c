/* Selection as the equations say it: score every visible key, pool, keep the best, (M5)-(M9). */
#include "backend/ref/ref_select.h"

#include <math.h>

size_t msa__ref_select_workspace(const msa_context *ctx, const msa_select_args *args)
{
    (void)ctx;
    (void)args;
    return 0;
}

/* (M5): z, rounded once, so that ranking is on f32 scores. */
static float score_key(const msa_select_args *args, ref_row q, int32_t seq, int64_t token)
{
    ref_row key = ref_kv_row(&args->kv, &args->kv.k_index, args->kv.k_index_scale, seq, token, 0,
                             args->block_size);
    return (float)ref_dot(q, key, args->q_index.shape[2]);
}

float ref_pool_block(const msa_select_args *args, ref_row q, int32_t seq, int64_t block,
                     int64_t position)
{
    float best = -INFINITY;
    int64_t first = block * args->block_size, end = first + args->block_size;
    for (int64_t j = first; j < end && j <= position; j++) {
        float z = score_key(args, q, seq, j);
        if (z > best) best = z;
    }
    return best;
}

/* L of the scaled scores over the tokens of the kept blocks, (M10), (M14). */
static float index_lse(const msa_select_args *args, ref_row q, int32_t seq, const int32_t *row,
                       int64_t position)
{
    double max = -HUGE_VAL, sum = 0;
    for (int pass = 0; pass < 2; pass++) {
        for (int32_t k = 0; k < args->topk && row[k] >= 0; k++) {
            int64_t first = (int64_t)row[k] * args->block_size, end = first + args->block_size;
            for (int64_t j = first; j < end && j <= position; j++) {
                double s = (double)args->index_scale * (double)score_key(args, q, seq, j);
                if (pass == 0) {
                    max = s > max ? s : max;
                } else {
                    sum += exp(s - max);
                }
            }
        }
        if (max == -HUGE_VAL) return -INFINITY;
    }
    return (float)(max + log(sum));
}

static void select_token(const msa_select_args *args, int32_t seq, int64_t i, int64_t position)
{
    int64_t local_block = position / args->block_size; /* (M3) */
    for (int64_t r = 0; r < args->q_index.shape[1]; r++) {
        ref_row q = ref_tensor_row(&args->q_index, i, r);
        ref_topk top = {.n_visible = local_block + 1,
                        .topk = args->topk,
                        .n_init = args->n_init,
                        .n_local = args->n_local};
        float *scores = args->block_scores.data ? ref_f32_at(&args->block_scores, i, r) : NULL;
        if (args->index8.keys.n_dims) {
            ref_offer_open(args, q, i, r, seq, &top);
        } else {
            for (int64_t b = 0; b <= local_block; b++) {
                float score = ref_pool_block(args, q, seq, b, position);
                ref_topk_offer(&top, b, score);
                if (scores) scores[b] = score;
            }
        }
        int32_t *row = ref_i32_at(&args->blocks, i, r);
        ref_topk_write(&top, row);
        if (scores) {
            for (int64_t b = local_block + 1; b < args->block_scores.shape[2]; b++) {
                scores[b] = -INFINITY;
            }
        }
        if (args->index_lse.data) {
            *ref_f32_at(&args->index_lse, i, r) = index_lse(args, q, seq, row, position);
        }
    }
}

msa_status msa__ref_select(msa_context *ctx, const msa_select_args *args, void *workspace)
{
    (void)ctx;
    (void)workspace;
    const int32_t *cu = args->cu_seqlens_q;
    for (int32_t s = 0; s < args->kv.n_seqs; s++) {
        int64_t first_position = msa__kv_length(&args->kv, s) - (cu[s + 1] - cu[s]); /* (M2) */
        for (int64_t i = cu[s]; i < cu[s + 1]; i++) {
            select_token(args, s, i, first_position + i - cu[s]);
        }
    }
    return MSA_OK;
}
