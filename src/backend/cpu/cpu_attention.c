/* See cpu_attention.h. */
#include "backend/cpu/cpu_attention.h"

#include "base/numeric.h"

#include <math.h>

#define LOG2_E 1.44269504088896340736f
#define LN_2   0.69314718055994530942f

msa__attention msa__attention_make(const msa__cpu_kernels *kernels, const msa_tensor *q,
                                   const msa_kv_view *kv, const msa_tensor *out,
                                   const msa_tensor *lse, int32_t block_size, float scale)
{
    return (msa__attention){
        .kernels = kernels,
        .q = q,
        .kv = kv,
        .out = out,
        .lse = lse,
        .block_size = block_size,
        .n_slots = block_size < 32 ? 32 : block_size,
        .bf16 = q->dtype == MSA_DTYPE_BF16 && kv->k.dtype != MSA_DTYPE_F32 &&
                kv->v.dtype != MSA_DTYPE_F32,
        .group = q->shape[1] / kv->k.shape[1],
        .head_dim = q->shape[2],
        .scale_log2 = scale * kv->k_scale * LOG2_E,
    };
}

static size_t product_bytes(const msa__attention *at)
{
    return at->bf16 ? 2 : 4;
}

size_t msa__panel_bytes(const msa__attention *at)
{
    return (size_t)at->head_dim * MSA__PANEL * product_bytes(at);
}

void msa__attend_scratch_take(const msa__attention *at, msa__arena *arena,
                              msa__attend_scratch *scratch)
{
    int64_t rows = MSA__PANEL * MSA__STEP_PANELS;
    size_t bytes = product_bytes(at);
    scratch->k = msa__take(arena, at->block_size * at->head_dim, bytes);
    scratch->v = msa__take(arena, at->n_slots * at->head_dim, bytes);
    scratch->v_tile = msa__take(arena, at->n_slots * at->head_dim, bytes);
    scratch->scores = msa__take(arena, at->block_size * rows, sizeof(float));
    scratch->p = msa__take(arena, at->n_slots * rows, bytes);
    scratch->gather = msa__take(arena, MSA__PANEL * at->head_dim, sizeof(float));
}

void msa__attend_rows_take(const msa__attention *at, msa__arena *arena, int64_t n_rows,
                           msa__attend_rows *rows)
{
    rows->q = msa__take(arena, n_rows / MSA__PANEL, msa__panel_bytes(at));
    rows->m = msa__take(arena, n_rows, sizeof(float));
    rows->l = msa__take(arena, n_rows, sizeof(float));
    rows->o = msa__take(arena, n_rows * at->head_dim, sizeof(float));
}

void msa__attend_rows_clear(const msa__attention *at, const msa__attend_rows *rows, int64_t n_rows)
{
    for (int64_t i = 0; i < n_rows; i++) rows->m[i] = -INFINITY;
    memset(rows->l, 0, (size_t)n_rows * sizeof(float));
    memset(rows->o, 0, (size_t)(n_rows * at->head_dim) * sizeof(float));
}

/* Values of the first n_keys tokens of a tile as panels; the other slots are zero. */
static void pack_values(const msa__attention *at, const msa__kv_tile *tile, int32_t n_keys,
                        void *panels)
{
    msa_dtype dtype = at->kv->v.dtype;
    if (at->bf16) {
        at->kernels->pack_rows_bf16(panels, tile->data, dtype, tile->row_stride, n_keys,
                                    at->n_slots, at->head_dim);
    } else {
        at->kernels->pack_rows_f32(panels, tile->data, dtype, tile->row_stride, n_keys, at->n_slots,
                                   at->head_dim);
    }
}

static int32_t all_finite(const msa__attention *at, const void *panels)
{
    int64_t n = at->n_slots * at->head_dim;
    int32_t bad = 0;
    if (at->bf16) {
        const uint16_t *x = panels;
        for (int64_t i = 0; i < n; i++) bad |= (x[i] & 0x7f80) == 0x7f80;
    } else {
        const uint32_t *x = panels;
        for (int64_t i = 0; i < n; i++) bad |= (x[i] & 0x7f800000) == 0x7f800000;
    }
    return !bad;
}

/* Keys in the products' dtype: where they lie, or converted. */
static void load_keys(const msa__attention *at, const msa__attend_scratch *scratch,
                      msa__attend_block *ready)
{
    msa_dtype dtype = at->kv->k.dtype;
    const msa__kv_tile *tile = &ready->k_tile;
    if (dtype == (at->bf16 ? MSA_DTYPE_BF16 : MSA_DTYPE_F32)) {
        ready->k = tile->data;
        ready->ld_k = tile->row_stride;
        return;
    }
    int64_t row_bytes = tile->row_stride * (int64_t)msa_dtype_bytes(dtype);
    for (int64_t i = 0; i < ready->n_keys; i++) {
        const unsigned char *src = tile->data + i * row_bytes;
        if (at->bf16) {
            at->kernels->to_bf16((uint16_t *)scratch->k + i * at->head_dim, src, dtype,
                                 at->head_dim);
        } else {
            at->kernels->to_f32((float *)scratch->k + i * at->head_dim, src, dtype, at->head_dim);
        }
    }
    ready->k = scratch->k;
    ready->ld_k = at->head_dim;
}

void msa__attend_load(const msa__attention *at, const msa__attend_scratch *scratch, int32_t seq,
                      int64_t block, int32_t head, int32_t n_keys, int32_t masked,
                      msa__attend_block *ready)
{
    const msa_kv_view *kv = at->kv;
    ready->n_keys = n_keys;
    ready->k_tile = msa__kv_block(kv, &kv->k, seq, block, head, at->block_size);
    ready->v_tile = msa__kv_block(kv, &kv->v, seq, block, head, at->block_size);
    load_keys(at, scratch, ready);
    pack_values(at, &ready->v_tile, n_keys, scratch->v);
    ready->v_finite = masked ? all_finite(at, scratch->v) : 1;
}

/* Rows begin..end-1 of a tile. */
static void fetch_rows(const msa__kv_tile *tile, msa_dtype dtype, int64_t dim, int64_t begin,
                       int64_t end)
{
    size_t element = msa_dtype_bytes(dtype), row_bytes = (size_t)dim * element;
    for (int64_t i = begin; i < end; i++) {
        const unsigned char *row = tile->data + (size_t)(i * tile->row_stride) * element;
        for (size_t byte = 0; byte < row_bytes; byte += 64) __builtin_prefetch(row + byte, 0, 2);
    }
}

void msa__attend_prefetch(const msa__attention *at, int32_t seq, int64_t block, int32_t head,
                          int64_t part, int64_t n_parts)
{
    const msa_kv_view *kv = at->kv;
    msa__kv_tile k = msa__kv_block(kv, &kv->k, seq, block, head, at->block_size);
    msa__kv_tile v = msa__kv_block(kv, &kv->v, seq, block, head, at->block_size);
    int64_t begin = k.n_tokens * part / n_parts, end = k.n_tokens * (part + 1) / n_parts;
    fetch_rows(&k, kv->k.dtype, at->head_dim, begin, end);
    fetch_rows(&v, kv->v.dtype, at->head_dim, begin, end);
}

/* S^T of n_panels panels. */
static void score(const msa__attention *at, const msa__attend_block *block,
                  const msa__attend_scratch *scratch, const unsigned char *q, int64_t n_panels)
{
    int64_t ld = MSA__PANEL * MSA__STEP_PANELS;
    if (at->bf16) {
        at->kernels->gemm_bf16(block->n_keys, n_panels, at->head_dim, block->k, block->ld_k,
                               (const uint16_t *)(const void *)q, scratch->scores, ld, 0);
    } else {
        at->kernels->gemm_f32(block->n_keys, n_panels, at->head_dim, block->k, block->ld_k,
                              (const float *)(const void *)q, scratch->scores, ld, 0);
    }
}

/* Row `row` does not see key `key`. */
static inline int is_hidden(const msa__attend_mask *mask, int64_t row, int32_t key)
{
    return key >= mask->end[row] || (key < mask->begin[row] && key >= mask->sink);
}

static void hide_scores(const msa__attend_block *block, const msa__attend_scratch *scratch,
                        int64_t n_rows, const msa__attend_mask *mask, int64_t first)
{
    int64_t ld = MSA__PANEL * MSA__STEP_PANELS;
    for (int64_t j = 0; j < n_rows; j++) {
        float *column = scratch->scores + j;
        int32_t begin = mask->begin[first + j], end = mask->end[first + j];
        for (int32_t key = mask->sink; key < begin && key < block->n_keys; key++) {
            column[key * ld] = -INFINITY;
        }
        for (int32_t key = end; key < block->n_keys; key++) column[key * ld] = -INFINITY;
    }
}

static int32_t softmax(const msa__attention *at, const msa__attend_block *block,
                       const msa__attend_scratch *scratch, int64_t panel, float *m, float *l,
                       float *factor)
{
    const msa__attend_kernels *kernels = at->kernels->attend;
    const float *scores = scratch->scores + panel * MSA__PANEL;
    int64_t ld = MSA__PANEL * MSA__STEP_PANELS, first = panel * MSA__PANEL * at->n_slots;
    if (at->bf16) {
        return kernels->softmax_bf16((uint16_t *)scratch->p + first, at->n_slots, scores, ld,
                                     block->n_keys, at->n_slots, at->scale_log2, m, l, factor);
    }
    return kernels->softmax_f32((float *)scratch->p + first, at->n_slots, scores, ld, block->n_keys,
                                at->n_slots, at->scale_log2, m, l, factor);
}

/* O += P V for n_rows rows from row `first` of the step. */
static void add_values(const msa__attention *at, const msa__attend_scratch *scratch, const void *v,
                       int64_t first, int64_t n_rows, float *o)
{
    int64_t n_slots = at->n_slots, dim = at->head_dim;
    if (at->bf16) {
        at->kernels->gemm_bf16(n_rows, dim / MSA__PANEL, n_slots,
                               (const uint16_t *)scratch->p + first * n_slots, n_slots, v, o, dim,
                               1);
    } else {
        at->kernels->gemm_f32(n_rows, dim / MSA__PANEL, n_slots,
                              (const float *)scratch->p + first * n_slots, n_slots, v, o, dim, 1);
    }
}

/* Slot `key` of packed values becomes zero. */
static void clear_slot(const msa__attention *at, void *panels, int32_t key)
{
    for (int64_t d = 0; d < at->head_dim; d++) {
        int64_t panel = d / MSA__PANEL * MSA__PANEL * at->n_slots, column = d % MSA__PANEL;
        if (at->bf16) {
            ((uint16_t *)panels)[panel + (key / 2) * 2 * MSA__PANEL + 2 * column + key % 2] = 0;
        } else {
            ((float *)panels)[panel + key * MSA__PANEL + column] = 0;
        }
    }
}

/* Zero times a value that is not finite is not zero: give each row values without the hidden ones.
 * Zeroes in their place leave the bits of the sum as they are. */
static void add_values_by_row(const msa__attention *at, const msa__attend_scratch *scratch,
                              const msa__attend_block *block, int64_t n_rows, float *o,
                              const msa__attend_mask *mask, int64_t first)
{
    for (int64_t j = 0; j < n_rows; j++) {
        pack_values(at, &block->v_tile, block->n_keys, scratch->v_tile);
        for (int32_t key = 0; key < block->n_keys; key++) {
            if (is_hidden(mask, first + j, key)) clear_slot(at, scratch->v_tile, key);
        }
        add_values(at, scratch, scratch->v_tile, j, 1, o + j * at->head_dim);
    }
}

void msa__attend_block_rows(const msa__attention *at, const msa__attend_scratch *scratch,
                            const msa__attend_block *block, const msa__attend_rows *rows,
                            int64_t n_panels, const msa__attend_mask *mask)
{
    size_t panel_bytes = msa__panel_bytes(at);
    for (int64_t first = 0; first < n_panels; first += MSA__STEP_PANELS) {
        int64_t n = n_panels - first < MSA__STEP_PANELS ? n_panels - first : MSA__STEP_PANELS;
        int64_t first_row = first * MSA__PANEL, n_rows = n * MSA__PANEL;
        float *o = rows->o + first_row * at->head_dim;
        score(at, block, scratch, rows->q + (size_t)first * panel_bytes, n);
        if (mask) hide_scores(block, scratch, n_rows, mask, first_row);
        for (int64_t p = 0; p < n; p++) {
            float factor[MSA__PANEL];
            int64_t row = first_row + p * MSA__PANEL;
            if (softmax(at, block, scratch, p, rows->m + row, rows->l + row, factor)) {
                at->kernels->attend->scale_rows(rows->o + row * at->head_dim, at->head_dim,
                                                at->head_dim, factor);
            }
        }
        if (mask && !block->v_finite) {
            add_values_by_row(at, scratch, block, n_rows, o, mask, first_row);
        } else {
            add_values(at, scratch, scratch->v, 0, n_rows, o);
        }
    }
}

void msa__attend_finish(const msa__attention *at, const msa__attend_rows *rows, int64_t n_rows,
                        const msa__query_rows *queries, int64_t first)
{
    const msa_tensor *out = at->out, *lse = at->lse;
    for (int64_t i = 0; i < n_rows; i++) {
        int64_t token = queries->first_token + (first + i) / queries->n_heads;
        int64_t head = queries->first_head + (first + i) % queries->n_heads;
        float *o = rows->o + i * at->head_dim, l = rows->l[i];
        float factor = l == 0.0f ? 0.0f : at->kv->v_scale / l;
        for (int64_t d = 0; d < at->head_dim; d++) o[d] *= factor;
        int64_t offset = token * out->stride[0] + head * out->stride[1];
        at->kernels->from_f32((unsigned char *)out->data +
                                  offset * (int64_t)msa_dtype_bytes(out->dtype),
                              out->dtype, o, at->head_dim);
        if (!lse->data) continue;
        ((float *)lse->data)[token * lse->stride[0] + head * lse->stride[1]] =
            l == 0.0f ? -INFINITY : LN_2 * (rows->m[i] + log2f(l));
    }
}
