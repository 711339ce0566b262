/* The index scores and the K best tokens as the equations say it, (D1), (D2). */
#include "backend/ref/ref_backend.h"
#include "backend/ref/ref_rows.h"
#include "ops/token_ranks.h"

#include <stdlib.h>

typedef struct {
    float score;
    int32_t token;
} candidate;

size_t msa__ref_token_select_workspace(const msa_context *ctx, const msa_token_select_args *args)
{
    (void)ctx;
    return (size_t)token_ranks_room(&args->kv, args->block_size) * sizeof(candidate);
}

/* (D1), rounded once. */
static float score(const msa_token_select_args *args, int32_t seq, int64_t i, int64_t token)
{
    const msa_kv_view *kv = &args->kv;
    const float *weights = (const float *)args->weights.data + i * args->weights.stride[0];
    ref_row key = ref_kv_row(kv, &kv->k_index, kv->k_index_scale, seq, token, 0, args->block_size);
    double sum = 0;
    for (int64_t h = 0; h < args->q_index.shape[1]; h++) {
        double z = ref_dot(ref_tensor_row(&args->q_index, i, h), key, args->q_index.shape[2]);
        sum += (double)weights[h] * (z < 0 ? 0 : z); /* NaN stays */
    }
    return (float)sum;
}

/* Best first: (D2). */
static int compare(const void *a, const void *b)
{
    const candidate *x = a, *y = b;
    int x_nan = x->score != x->score, y_nan = y->score != y->score;
    if (x_nan != y_nan) return x_nan - y_nan;
    if (!x_nan && x->score != y->score) return x->score < y->score ? 1 : -1;
    return x->token < y->token ? -1 : 1;
}

static int ascending(const void *a, const void *b)
{
    const int32_t *x = a, *y = b;
    return *x < *y ? -1 : *x > *y;
}

static void select_token(const msa_token_select_args *args, int32_t seq, int64_t i,
                         int64_t position, candidate *candidates)
{
    int32_t *row = (int32_t *)args->tokens.data + i * args->tokens.stride[0];
    int64_t topk = args->tokens.shape[1], n = 0;
    for (int64_t j = 0; j <= position; j++) {
        candidates[j] = (candidate){score(args, seq, i, j), (int32_t)j};
    }
    qsort(candidates, (size_t)position + 1, sizeof(*candidates), compare);
    for (; n < topk && n <= position; n++) row[n] = candidates[n].token;
    qsort(row, (size_t)n, sizeof(*row), ascending);
    while (n < topk) row[n++] = -1;
}

msa_status msa__ref_token_select(msa_context *ctx, const msa_token_select_args *args,
                                 void *workspace)
{
    (void)ctx;
    const int32_t *cu = args->cu_seqlens_q;
    for (int32_t s = 0; s < args->kv.n_seqs; s++) {
        int64_t first_position = msa__kv_length(&args->kv, s) - (cu[s + 1] - cu[s]); /* (M2) */
        for (int64_t i = cu[s]; i < cu[s + 1]; i++) {
            select_token(args, s, i, first_position + i - cu[s], workspace);
        }
    }
    return MSA_OK;
}
