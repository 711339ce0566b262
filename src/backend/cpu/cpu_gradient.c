/* See cpu_gradient.h. */
#include "backend/cpu/cpu_gradient.h"

#include <math.h>
#include <string.h>

void msa__multiply(msa__products by, int64_t m, int64_t n_panels, int64_t k, const void *a,
                   int64_t lda, const void *b, float *c, int64_t ldc, int32_t accumulate)
{
    if (by.bf16) {
        by.kernels->gemm_bf16(m, n_panels, k, a, lda, b, c, ldc, accumulate);
    } else {
        by.kernels->gemm_f32(m, n_panels, k, a, lda, b, c, ldc, accumulate);
    }
}

void msa__gather_rows(msa__products by, const msa_tensor *t, const int32_t *tokens,
                      int64_t n_tokens, int64_t first_head, int64_t n_heads, void *rows)
{
    int64_t dim = t->shape[2], element = (int64_t)msa_dtype_bytes(t->dtype);
    int64_t run = t->stride[1] == dim ? n_heads : 1; /* heads that lie beside each other */
    for (int64_t i = 0; i < n_tokens; i++) {
        for (int64_t h = 0; h < n_heads; h += run) {
            const unsigned char *src =
                (const unsigned char *)t->data +
                (tokens[i] * t->stride[0] + (first_head + h) * t->stride[1]) * element;
            int64_t to = (i * n_heads + h) * dim;
            if (by.bf16) {
                by.kernels->to_bf16((uint16_t *)rows + to, src, t->dtype, run * dim);
            } else {
                by.kernels->to_f32((float *)rows + to, src, t->dtype, run * dim);
            }
        }
    }
}

void msa__rows_as_columns(msa__products by, const void *rows, msa_dtype dtype, int64_t ld,
                          int64_t n_rows, int64_t dim, void *panels)
{
    int64_t row_bytes = ld * (int64_t)msa_dtype_bytes(dtype);
    for (int64_t i = 0; i < n_rows; i += MSA__PANEL) {
        int64_t n = n_rows - i < MSA__PANEL ? n_rows - i : MSA__PANEL;
        const unsigned char *src = (const unsigned char *)rows + i * row_bytes;
        if (by.bf16) {
            by.kernels->pack_columns_bf16((uint16_t *)panels + i * dim, src, dtype, ld, n, dim);
        } else {
            by.kernels->pack_columns_f32((float *)panels + i * dim, src, dtype, ld, n, dim);
        }
    }
}

void msa__rows_as_rows(msa__products by, const void *rows, msa_dtype dtype, int64_t ld,
                       int64_t n_rows, int64_t dim, void *panels)
{
    int64_t k = msa__panels_of(n_rows) * MSA__PANEL;
    if (by.bf16) {
        by.kernels->pack_rows_bf16(panels, rows, dtype, ld, n_rows, k, dim);
    } else {
        by.kernels->pack_rows_f32(panels, rows, dtype, ld, n_rows, k, dim);
    }
}

/* Scores of one token, n_heads rows of n_columns. */
static void hide_unlisted(const msa_tensor *tokens, int64_t token, const msa__pairs *pairs,
                          float *scores, int64_t ld, int64_t n_heads)
{
    uint8_t keep[256]; /* the largest block */
    int64_t n_columns = msa__panels_of(pairs->n_keys) * MSA__PANEL;
    msa__find_listed(tokens, token, pairs, keep);
    for (int64_t h = 0; h < n_heads; h++) {
        float *row = scores + h * ld;
        for (int64_t j = 0; j < pairs->n_keys; j++) row[j] = keep[j] ? row[j] : -INFINITY;
        for (int64_t j = pairs->n_keys; j < n_columns; j++) row[j] = -INFINITY;
    }
}

void msa__hide_keys(const msa__selection *selection, const msa__pairs *pairs, float *scores,
                    int64_t ld, int64_t first_token, int64_t n_tokens, int64_t n_heads)
{
    int64_t n_columns = msa__panels_of(pairs->n_keys) * MSA__PANEL;
    for (int64_t t = 0; t < n_tokens; t++) {
        if (selection->tokens) {
            hide_unlisted(selection->tokens, pairs->tokens[first_token + t], pairs,
                          scores + t * n_heads * ld, ld, n_heads);
            continue;
        }
        msa__key_range keys = msa__keys_of(selection, pairs, pairs->tokens[first_token + t]);
        if (keys.begin <= keys.sink && keys.end == n_columns) continue;
        for (int64_t h = 0; h < n_heads; h++) {
            float *row = scores + (t * n_heads + h) * ld;
            for (int64_t j = keys.sink; j < keys.begin; j++) row[j] = -INFINITY;
            for (int64_t j = keys.end; j < n_columns; j++) row[j] = -INFINITY;
        }
    }
}

void msa__spread_rows(const float *x, int64_t n_per_token, const int32_t *tokens, int64_t n_tokens,
                      int64_t first_head, int64_t n_heads, float *spread)
{
    for (int64_t t = 0; t < n_tokens; t++) {
        for (int64_t h = 0; h < n_heads; h++, spread += MSA__PANEL) {
            float value = x[tokens[t] * n_per_token + first_head + h];
            for (int i = 0; i < MSA__PANEL; i++) spread[i] = value;
        }
    }
}

float msa__shift_of(const msa_tensor *lse, int64_t token, int64_t head)
{
    float x = ((const float *)lse->data)[token * lse->stride[0] + head * lse->stride[1]];
    return x == -INFINITY ? INFINITY : x * MSA__LOG2_E;
}

static void *element_of(const msa_tensor *t, int64_t offset)
{
    return (unsigned char *)t->data + offset * (int64_t)msa_dtype_bytes(t->dtype);
}

void msa__write_gradient(const msa__cpu_kernels *kernels, const msa_tensor *t, int64_t first,
                         float *sums, float scale, int64_t n, int32_t accumulate)
{
    float before[512]; /* the widest head */
    void *at = element_of(t, first);
    for (int64_t d = 0; d < n; d++) sums[d] *= scale;
    if (accumulate) {
        kernels->to_f32(before, at, t->dtype, n);
        for (int64_t d = 0; d < n; d++) sums[d] += before[d];
    }
    kernels->from_f32(at, t->dtype, sums, n);
}

static void clear_rows(const msa_tensor *t, int64_t first, int64_t end)
{
    int64_t dim = t->shape[t->n_dims - 1], n_heads = t->n_dims == 3 ? t->shape[1] : 1;
    for (int64_t i = first; i < end; i++) {
        for (int64_t h = 0; h < n_heads; h++) {
            int64_t offset = i * t->stride[0] + (t->n_dims == 3 ? h * t->stride[1] : 0);
            memset(element_of(t, offset), 0, (size_t)dim * msa_dtype_bytes(t->dtype));
        }
    }
}

void msa__clear_unused_rows(const msa__selection *selection, const msa_tensor *t)
{
    const msa_kv_view *kv = selection->kv;
    int64_t used = 0;
    for (int32_t s = 0; s < kv->n_seqs; s++) {
        clear_rows(t, used, kv->cu_seqlens_k[s]);
        used = kv->cu_seqlens_k[s] + msa__kv_length(kv, s);
    }
    clear_rows(t, used, t->shape[0]);
}
