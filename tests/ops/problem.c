/* See problem.h. */
#define _POSIX_C_SOURCE 200809L
#include "ops/problem.h"

#include "base/numeric.h"
#include "base/rng.h"
#include "harness/cmocka_all.h"

#include <stdlib.h>

#define POISON 0xff /* NaN in every float dtype, -1 in int32 */

static void *keep(problem *p, size_t n, size_t bytes)
{
    assert_in_range(p->n_memory, 0, 15);
    void *memory = calloc(n ? n : 1, bytes);
    assert_non_null(memory);
    p->memory[p->n_memory++] = memory;
    return memory;
}

/* ---- truth ----------------------------------------------------------------------------------- */

/* Nearly normal, of variance one: the sum of eight uniform numbers. */
static double draw_normal(const uint32_t words[4])
{
    uint32_t sum = 0;
    for (int i = 0; i < 4; i++) sum += (words[i] & 0xffffu) + (words[i] >> 16);
    return ((double)sum * 0x1p-16 - 4) * 1.2247448713915890; /* sqrt(12 / 8) */
}

static double draw(problem_fill fill, uint64_t seed, uint64_t tensor, uint64_t index)
{
    uint32_t words[4];
    msa__philox(seed, index, tensor, words);
    switch (fill) {
    case FILL_NORMAL:
        return draw_normal(words);
    case FILL_TIES:
        return words[2] % 4 == 0 ? (double)(words[3] % 3) - 1 : 0;
    default:
        return 0;
    }
}

static double *draw_array(problem *p, int64_t n, uint64_t seed, uint64_t tensor)
{
    double *array = keep(p, (size_t)n, sizeof(double));
    for (int64_t i = 0; i < n; i++) array[i] = draw(p->spec.fill, seed, tensor, (uint64_t)i);
    return array;
}

double *problem_q(const problem *p, int64_t token, int32_t head)
{
    return p->q + (token * p->spec.n_q_heads + head) * p->spec.head_dim;
}

double *problem_q_index(const problem *p, int64_t token, int32_t group)
{
    return p->q_index + (token * p->spec.n_kv_heads + group) * p->spec.index_dim;
}

double *problem_k(const problem *p, int32_t seq, int64_t key, int32_t group)
{
    return p->k + ((p->cu_k[seq] + key) * p->spec.n_kv_heads + group) * p->spec.head_dim;
}

double *problem_v(const problem *p, int32_t seq, int64_t key, int32_t group)
{
    return p->v + ((p->cu_k[seq] + key) * p->spec.n_kv_heads + group) * p->spec.head_dim;
}

double *problem_k_index(const problem *p, int32_t seq, int64_t key)
{
    return p->k_index + (p->cu_k[seq] + key) * p->spec.index_dim;
}

static void lay_out_batch(problem *p)
{
    const problem_spec *spec = &p->spec;
    size_t n_seqs = (size_t)spec->n_seqs;
    p->cu_q = keep(p, n_seqs + 1, sizeof(int32_t));
    p->cu_k = keep(p, n_seqs + 1, sizeof(int32_t));
    p->kv_lens = keep(p, n_seqs, sizeof(int32_t));
    for (int32_t s = 0; s < spec->n_seqs; s++) {
        int32_t n_keys = spec->kv_lens[s % spec->n_lens];
        int32_t n_blocks = (n_keys + spec->block_size - 1) / spec->block_size;
        p->cu_q[s + 1] = p->cu_q[s] + spec->q_lens[s % spec->n_lens];
        p->cu_k[s + 1] = p->cu_k[s] + n_keys;
        p->kv_lens[s] = n_keys;
        if (n_blocks > p->n_blocks) p->n_blocks = n_blocks;
    }
    p->n_tokens = p->cu_q[n_seqs];
    p->n_keys = p->cu_k[n_seqs];
    p->seq_of = keep(p, (size_t)p->n_tokens, sizeof(int32_t));
    p->position = keep(p, (size_t)p->n_tokens, sizeof(int32_t));
    for (int32_t s = 0; s < spec->n_seqs; s++) {
        for (int32_t i = p->cu_q[s]; i < p->cu_q[s + 1]; i++) {
            p->seq_of[i] = s;
            p->position[i] = p->kv_lens[s] - (p->cu_q[s + 1] - i); /* (M2) */
        }
    }
}

/* ---- storage --------------------------------------------------------------------------------- */

msa_tensor poisoned_tensor(msa_dtype dtype, int32_t n_dims, int64_t d0, int64_t d1, int64_t d2,
                           int64_t d3, int64_t pad)
{
    msa_tensor t = msa_tensor_make(NULL, dtype, n_dims, d0, d1, d2, d3);
    int64_t step = t.shape[n_dims - 1] + pad;
    for (int32_t i = n_dims - 2; i >= 0; i--) {
        t.stride[i] = step;
        step *= t.shape[i];
    }
    size_t bytes = (size_t)step * msa_dtype_bytes(dtype);
    void *data = NULL;
    assert_int_equal(posix_memalign(&data, 64, bytes + 64), 0);
    memset(data, POISON, bytes + 64);
    t.data = data;
    return t;
}

void read_tensor(const msa_tensor *t, void *values)
{
    size_t element = msa_dtype_bytes(t->dtype);
    int64_t last = t->shape[t->n_dims - 1], n_rows = 1;
    int64_t pitch = t->n_dims > 1 ? t->stride[t->n_dims - 2] : last;
    for (int32_t i = 0; i + 1 < t->n_dims; i++) n_rows *= t->shape[i];
    for (int64_t row = 0; row < n_rows; row++) {
        const unsigned char *bytes =
            (const unsigned char *)t->data + (size_t)(row * pitch) * element;
        for (int64_t i = 0; i < last; i++) {
            if (t->dtype == MSA_DTYPE_I32) {
                ((int32_t *)values)[row * last + i] = ((const int32_t *)(const void *)bytes)[i];
            } else {
                ((float *)values)[row * last + i] = load_f32(bytes, t->dtype, i);
            }
        }
        for (size_t i = (size_t)last * element; i < (size_t)pitch * element; i++) {
            if (bytes[i] != POISON) fail_msg("output wrote behind row %lld", (long long)row);
        }
    }
}

/* Round a row of the truth to its dtype, and write it at element `first` of a tensor. */
static void store_row(const msa_tensor *t, int64_t first, double *row, int64_t n, float scale)
{
    for (int64_t d = 0; d < n; d++) {
        store_f32(t->data, t->dtype, first + d, (float)row[d] / scale);
        row[d] = (double)load_f32(t->data, t->dtype, first + d) * (double)scale;
    }
}

/* First element of a token's row in a lane. */
static int64_t slot_of(const problem *p, const msa_tensor *lane, int32_t seq, int64_t key,
                       int32_t group)
{
    int has_heads = lane->data != p->kv.k_index.data;
    int64_t head = has_heads ? group * lane->stride[1] : 0;
    if (!p->spec.paged) return (p->cu_k[seq] + key) * lane->stride[0] + head;
    int64_t page = p->page_table[seq * p->kv.page_table_stride + key / p->spec.block_size];
    return page * lane->stride[0] + head +
           key % p->spec.block_size * lane->stride[has_heads ? 2 : 1];
}

void problem_store(problem *p)
{
    const problem_spec *spec = &p->spec;
    const msa_kv_view *kv = &p->kv;
    for (int64_t i = 0; i < p->n_tokens; i++) {
        const msa_tensor *q = &p->q_tensor, *q_index = &p->q_index_tensor;
        for (int32_t h = 0; h < spec->n_q_heads; h++) {
            store_row(q, i * q->stride[0] + h * q->stride[1], problem_q(p, i, h), spec->head_dim,
                      1);
        }
        for (int32_t r = 0; r < spec->n_kv_heads; r++) {
            store_row(q_index, i * q_index->stride[0] + r * q_index->stride[1],
                      problem_q_index(p, i, r), spec->index_dim, 1);
        }
    }
    for (int32_t s = 0; s < spec->n_seqs; s++) {
        for (int64_t j = 0; j < p->kv_lens[s]; j++) {
            for (int32_t r = 0; r < spec->n_kv_heads; r++) {
                store_row(&kv->k, slot_of(p, &kv->k, s, j, r), problem_k(p, s, j, r),
                          spec->head_dim, kv->k_scale);
                store_row(&kv->v, slot_of(p, &kv->v, s, j, r), problem_v(p, s, j, r),
                          spec->head_dim, kv->v_scale);
            }
            store_row(&kv->k_index, slot_of(p, &kv->k_index, s, j, 0), problem_k_index(p, s, j),
                      spec->index_dim, kv->k_index_scale);
        }
    }
}

/* Pages in an order that is neither ascending nor contiguous, some of the pool unused. */
static void scatter_pages(problem *p, uint64_t seed, int64_t *n_pages)
{
    const problem_spec *spec = &p->spec;
    int64_t n_slots = (int64_t)spec->n_seqs * p->n_blocks;
    p->page_table = keep(p, (size_t)n_slots, sizeof(int32_t));
    for (int64_t i = 0; i < n_slots; i++) p->page_table[i] = (int32_t)i + 1; /* page 0 is unused */
    for (int64_t i = n_slots - 1; i > 0; i--) {
        uint32_t words[4];
        msa__philox(seed, (uint64_t)i, 99, words);
        int64_t j = words[0] % (uint32_t)(i + 1);
        int32_t swap = p->page_table[i];
        p->page_table[i] = p->page_table[j];
        p->page_table[j] = swap;
    }
    *n_pages = n_slots + 2;
}

static void keep_tensor(problem *p, const msa_tensor *t)
{
    assert_in_range(p->n_memory, 0, 15);
    p->memory[p->n_memory++] = t->data;
}

static msa_tensor new_lane(const problem *p, msa_dtype dtype, int64_t n_pages, int32_t is_index)
{
    const problem_spec *spec = &p->spec;
    int64_t pad = spec->oversized ? 5 : 0, n_rows = p->n_keys + 3;
    if (is_index) {
        return spec->paged
                   ? poisoned_tensor(dtype, 3, n_pages, spec->block_size, spec->index_dim, 1, pad)
                   : poisoned_tensor(dtype, 2, n_rows, spec->index_dim, 1, 1, pad);
    }
    return spec->paged
               ? poisoned_tensor(dtype, 4, n_pages, spec->n_kv_heads, spec->block_size,
                                 spec->head_dim, pad)
               : poisoned_tensor(dtype, 3, n_rows, spec->n_kv_heads, spec->head_dim, 1, pad);
}

static void allocate_tensors(problem *p, uint64_t seed)
{
    const problem_spec *spec = &p->spec;
    int64_t pad = spec->oversized ? 5 : 0, n_pages = 0;
    msa_kv_view *kv = &p->kv;
    p->q_tensor =
        poisoned_tensor(spec->q_dtype, 3, p->n_tokens, spec->n_q_heads, spec->head_dim, 1, pad);
    p->q_index_tensor =
        poisoned_tensor(spec->q_dtype, 3, p->n_tokens, spec->n_kv_heads, spec->index_dim, 1, pad);
    kv->n_seqs = spec->n_seqs;
    kv->kv_lens = p->kv_lens;
    if (spec->paged) {
        scatter_pages(p, seed, &n_pages);
        kv->page_table = p->page_table;
        kv->page_table_stride = p->n_blocks;
    } else {
        kv->cu_seqlens_k = p->cu_k;
    }
    kv->k = new_lane(p, spec->cache_dtype, n_pages, 0);
    kv->v = new_lane(p, spec->mixed ? MSA_DTYPE_F8_E4M3 : spec->cache_dtype, n_pages, 0);
    kv->k_index = new_lane(p, spec->mixed ? MSA_DTYPE_F32 : spec->cache_dtype, n_pages, 1);
    kv->k_scale = kv->k.dtype == MSA_DTYPE_F8_E4M3 ? 0.25f : 1;
    kv->v_scale = kv->v.dtype == MSA_DTYPE_F8_E4M3 ? 0.5f : 1;
    kv->k_index_scale = kv->k_index.dtype == MSA_DTYPE_F8_E4M3 ? 2 : 1;
    const msa_tensor *tensors[5] = {&p->q_tensor, &p->q_index_tensor, &kv->k, &kv->v, &kv->k_index};
    for (int i = 0; i < 5; i++) keep_tensor(p, tensors[i]);
}

problem *problem_create(const problem_spec *spec, uint64_t seed)
{
    problem *p = calloc(1, sizeof(*p));
    assert_non_null(p);
    p->spec = *spec;
    lay_out_batch(p);
    p->q = draw_array(p, p->n_tokens * spec->n_q_heads * spec->head_dim, seed, 0);
    p->q_index = draw_array(p, p->n_tokens * spec->n_kv_heads * spec->index_dim, seed, 1);
    p->k = draw_array(p, p->n_keys * spec->n_kv_heads * spec->head_dim, seed, 2);
    p->v = draw_array(p, p->n_keys * spec->n_kv_heads * spec->head_dim, seed, 3);
    p->k_index = draw_array(p, p->n_keys * spec->index_dim, seed, 4);
    allocate_tensors(p, seed);
    problem_store(p);
    return p;
}

void problem_free(problem *p)
{
    for (int32_t i = 0; i < p->n_memory; i++) free(p->memory[i]);
    free(p);
}

static void advance(msa_tensor *t, int64_t rows)
{
    int64_t bytes = rows * t->stride[0] * (int64_t)msa_dtype_bytes(t->dtype);
    t->data = (unsigned char *)t->data + bytes;
    t->shape[0] -= rows;
}

void problem_slice_init(problem_slice *slice, const problem *p, int32_t seq, int32_t first,
                        int32_t n)
{
    int32_t token = p->cu_q[seq] + first; /* of the batch */
    problem *view = &slice->p;
    *view = *p;
    view->spec.n_seqs = 1;
    view->n_tokens = n;
    view->cu_q = slice->cu_q;
    view->cu_k = slice->cu_k;
    view->kv_lens = &slice->kv_len;
    view->seq_of += token;
    view->position += token;
    view->q += (int64_t)token * p->spec.n_q_heads * p->spec.head_dim;
    view->q_index += (int64_t)token * p->spec.n_kv_heads * p->spec.index_dim;
    advance(&view->q_tensor, token);
    advance(&view->q_index_tensor, token);
    view->q_tensor.shape[0] = view->q_index_tensor.shape[0] = n;
    slice->cu_q[0] = slice->cu_k[0] = 0;
    slice->cu_q[1] = n;
    slice->kv_len = slice->cu_k[1] = p->position[token + n - 1] + 1;
    msa_kv_view *kv = &view->kv;
    kv->n_seqs = 1;
    kv->kv_lens = &slice->kv_len;
    if (kv->page_table) {
        kv->page_table += seq * kv->page_table_stride;
    } else {
        kv->cu_seqlens_k = slice->cu_k;
        advance(&kv->k, p->cu_k[seq]);
        advance(&kv->v, p->cu_k[seq]);
        advance(&kv->k_index, p->cu_k[seq]);
    }
}
