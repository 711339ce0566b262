/* The selection rule on given block scores, one row after the other, (M7)-(M9). */
#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/cpu_topk.h"

#include <stddef.h>

#define MAX_TOPK 64

static void select_row(const msa_block_topk_args *args, int64_t token, int64_t head)
{
    const msa_tensor *scores = &args->scores, *blocks = &args->blocks;
    const float *row =
        (const float *)scores->data + token * scores->stride[0] + head * scores->stride[1];
    int64_t n_visible = args->n_visible[token], end = n_visible - args->n_local;
    uint64_t keys[MAX_TOPK];
    int32_t n = 0, n_slots = args->topk - args->n_init - args->n_local;
    float bound = n_slots ? NAN : INFINITY;
    for (int64_t b = args->n_init; b < end; b++) {
        if (row[b] <= bound) continue;
        bound = msa__topk_insert(keys, &n, n_slots, msa__rank_key(row[b], b));
    }
    msa__topk_write((int32_t *)blocks->data + token * blocks->stride[0] + head * blocks->stride[1],
                    args->topk, keys, n, n_visible, args->n_init, args->n_local);
}

static void select_token(void *arg, int64_t item, int32_t thread)
{
    const msa_block_topk_args *args = arg;
    (void)thread;
    for (int64_t head = 0; head < args->scores.shape[1]; head++) select_row(args, item, head);
}

msa_status msa__cpu_block_topk(msa_context *ctx, const msa_block_topk_args *args)
{
    msa_block_topk_args copy = *args;
    msa__parallel_for(ctx->pool, args->scores.shape[0], select_token, &copy);
    return MSA_OK;
}
