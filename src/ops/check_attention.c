/* See check_attention.h. */
#include "ops/check_attention.h"

#include "base/overflow.h"
#include "ops/kv_tile.h"

#include <math.h>

/* Paged [pages, (Hkv,) P, dim], packed [rows, (Hkv,) dim]; n_heads 0: a lane without heads. */
static msa_status check_lane(const msa__check *at, const msa_kv_view *kv, const char *name,
                             const msa_tensor *lane, int64_t n_heads, int64_t dim,
                             int32_t block_size)
{
    int32_t n_dims = 2 + (n_heads > 0) + (kv->page_table != NULL);
    MSA_TRY(msa__check_tensor(at, name, lane, n_dims, MSA__DTYPES_CACHE));
    if (n_heads > 0) MSA_TRY(msa__check_dim(at, name, lane, 1, n_heads, "Hkv"));
    if (kv->page_table)
        MSA_TRY(msa__check_dim(at, name, lane, n_dims - 2, block_size, "block_size"));
    return msa__check_dim(at, name, lane, n_dims - 1, dim, n_heads > 0 ? "D" : "Di");
}

static msa_status check_page_table(const msa__check *at, const msa_kv_view *kv, int64_t n_pages,
                                   int32_t block_size)
{
    for (int32_t s = 0; s < kv->n_seqs; s++) {
        int64_t n_blocks = msa__ceil_div(kv->kv_lens[s], block_size);
        const int32_t *pages = kv->page_table + s * kv->page_table_stride;
        if (n_blocks > kv->page_table_stride) {
            return MSA_FAIL(MSA_EINVAL, "%s: kv.kv_lens[%d] = %d, must fit %lld pages of %d tokens",
                            at->op, s, kv->kv_lens[s], (long long)kv->page_table_stride,
                            block_size);
        }
        for (int64_t b = 0; b < n_blocks; b++) {
            if (pages[b] >= 0 && pages[b] < n_pages) continue;
            return MSA_FAIL(MSA_EINVAL, "%s: kv.page_table[%d][%lld] = %d, must be 0..%lld", at->op,
                            s, (long long)b, pages[b], (long long)n_pages - 1);
        }
    }
    return MSA_OK;
}

/* Lengths: not negative, within the packed rows, and T <= S. */
static msa_status check_lengths(const msa__check *at, const msa_kv_view *kv,
                                const int32_t *cu_seqlens_q)
{
    for (int32_t s = 0; s < kv->n_seqs; s++) {
        int64_t n_keys = msa__kv_length(kv, s);
        int64_t n_tokens = (int64_t)cu_seqlens_q[s + 1] - cu_seqlens_q[s];
        if (n_keys < 0) {
            return MSA_FAIL(MSA_EINVAL, "%s: kv.kv_lens[%d] = %lld, must not be negative", at->op,
                            s, (long long)n_keys);
        }
        if (kv->cu_seqlens_k) {
            int64_t n_rows = (int64_t)kv->cu_seqlens_k[s + 1] - kv->cu_seqlens_k[s];
            if (n_keys > n_rows) {
                return MSA_FAIL(MSA_EINVAL,
                                "%s: kv.kv_lens[%d] = %lld, must be at most its %lld rows", at->op,
                                s, (long long)n_keys, (long long)n_rows);
            }
        }
        if (n_tokens > n_keys) {
            return MSA_FAIL(MSA_EINVAL,
                            "%s: sequence %d has T = %lld, must be at most its S = %lld", at->op, s,
                            (long long)n_tokens, (long long)n_keys);
        }
    }
    return MSA_OK;
}

static msa_status check_lanes(const msa__check *at, msa_kv_view *kv, const msa__kv_shape *shape)
{
    if (shape->head_dim > 0) {
        MSA_TRY(check_lane(at, kv, "kv.k", &kv->k, shape->n_kv_heads, shape->head_dim,
                           shape->block_size));
        MSA_TRY(msa__complete_lane_scale(at, "kv.k_scale", kv->k.dtype, &kv->k_scale));
    }
    if (shape->head_dim > 0 && !shape->keys_only) {
        MSA_TRY(check_lane(at, kv, "kv.v", &kv->v, shape->n_kv_heads, shape->head_dim,
                           shape->block_size));
        MSA_TRY(msa__check_dim(at, "kv.v", &kv->v, 0, kv->k.shape[0], "kv.k.shape[0]"));
        MSA_TRY(msa__complete_lane_scale(at, "kv.v_scale", kv->v.dtype, &kv->v_scale));
    }
    if (shape->index_dim > 0) {
        MSA_TRY(
            check_lane(at, kv, "kv.k_index", &kv->k_index, 0, shape->index_dim, shape->block_size));
        MSA_TRY(msa__complete_lane_scale(at, "kv.k_index_scale", kv->k_index.dtype,
                                         &kv->k_index_scale));
    }
    if (shape->head_dim > 0 && shape->index_dim > 0) {
        MSA_TRY(msa__check_dim(at, "kv.k_index", &kv->k_index, 0, kv->k.shape[0], "kv.k.shape[0]"));
    }
    return MSA_OK;
}

msa_status msa__check_kv(const msa__check *at, msa_kv_view *kv, const int32_t *cu_seqlens_q,
                         const msa__kv_shape *shape)
{
    if (!kv->page_table == !kv->cu_seqlens_k) {
        return MSA_FAIL(MSA_EINVAL,
                        "%s: kv.page_table and kv.cu_seqlens_k are %s, must be one of them", at->op,
                        kv->page_table ? "both set" : "both NULL");
    }
    MSA_TRY(msa__check_range(at, "kv.n_seqs", kv->n_seqs, 0, INT32_MAX - 1));
    MSA_TRY(check_lanes(at, kv, shape));
    if (kv->page_table) {
        MSA_TRY(msa__check_range(at, "kv.page_table_stride", kv->page_table_stride, 0, INT32_MAX));
    }
    if (!at->running) return MSA_OK;

    int32_t only_index = shape->head_dim == 0 && shape->index_dim > 0;
    int64_t n_units = only_index ? kv->k_index.shape[0] : kv->k.shape[0]; /* pages or rows */
    MSA_TRY(msa__check_offsets(at, "cu_seqlens_q", cu_seqlens_q, kv->n_seqs, shape->n_tokens, 1));
    if (kv->cu_seqlens_k) {
        MSA_TRY(
            msa__check_offsets(at, "kv.cu_seqlens_k", kv->cu_seqlens_k, kv->n_seqs, n_units, 0));
    }
    if (kv->page_table || kv->kv_lens) {
        MSA_TRY(msa__check_array(at, "kv.kv_lens", kv->kv_lens, sizeof(*kv->kv_lens)));
    }
    if (kv->page_table) {
        MSA_TRY(msa__check_array(at, "kv.page_table", kv->page_table, sizeof(*kv->page_table)));
    }
    if (!msa__can_read(at)) return MSA_OK;
    MSA_TRY(check_lengths(at, kv, cu_seqlens_q));
    return kv->page_table ? check_page_table(at, kv, n_units, shape->block_size) : MSA_OK;
}

/* As long as nothing reads v, k may stand in for it. */
msa_status msa__check_keys(const msa__check *at, msa_kv_view *kv, const int32_t *cu_seqlens_q,
                           int64_t n_tokens, int32_t block_size)
{
    int32_t n_dims = kv->page_table ? 4 : 3;
    MSA_TRY(msa__check_tensor(at, "kv.k", &kv->k, n_dims, MSA__DTYPES_CACHE));
    MSA_TRY(msa__check_range(at, "kv.k.shape[1]", kv->k.shape[1], 1, INT32_MAX));
    MSA_TRY(msa__check_head_dim(at, "kv.k's D", kv->k.shape[n_dims - 1]));
    kv->v = kv->k;
    kv->v_scale = kv->k_scale;
    msa__kv_shape shape = {.n_tokens = n_tokens,
                           .n_kv_heads = kv->k.shape[1],
                           .head_dim = kv->k.shape[n_dims - 1],
                           .block_size = block_size};
    return msa__check_kv(at, kv, cu_seqlens_q, &shape);
}

msa_status msa__check_means(const msa__check *at, const msa_kv_view *kv, const msa_tensor *means,
                            int32_t block_size)
{
    const msa_tensor *k = &kv->k;
    MSA_TRY(msa__check_tensor(at, "means", means, 3, MSA__DTYPES_F32));
    MSA_TRY(msa__check_dim(at, "means", means, 1, k->shape[1], "Hkv"));
    MSA_TRY(msa__check_dim(at, "means", means, 2, k->shape[k->n_dims - 1], "D"));
    if (kv->page_table) return msa__check_dim(at, "means", means, 0, k->shape[0], "the pages");
    return msa__check_range(at, "means.shape[0]", means->shape[0],
                            k->shape[0] / block_size + kv->n_seqs, INT64_MAX);
}

msa_status msa__check_index8(const msa__check *at, const msa_kv_view *kv, const msa_index8 *index8)
{
    const msa_tensor *keys = &index8->keys, *bounds = &index8->bounds, *k_index = &kv->k_index;
    if (!kv->page_table) {
        return MSA_FAIL(MSA_EINVAL, "%s: kv.page_table = NULL, must be set with index8", at->op);
    }
    MSA_TRY(msa__check_tensor(at, "index8.keys", keys, 3, MSA__DTYPES_I8));
    MSA_TRY(msa__check_dim(at, "index8.keys", keys, 0, k_index->shape[0], "kv.k_index.shape[0]"));
    MSA_TRY(msa__check_dim(at, "index8.keys", keys, 1, k_index->shape[1], "P"));
    MSA_TRY(msa__check_dim(at, "index8.keys", keys, 2, k_index->shape[2], "Di"));
    MSA_TRY(msa__check_tensor(at, "index8.bounds", bounds, 2, MSA__DTYPES_F32));
    MSA_TRY(
        msa__check_dim(at, "index8.bounds", bounds, 0, k_index->shape[0], "kv.k_index.shape[0]"));
    return msa__check_dim(at, "index8.bounds", bounds, 1, 3, "(scale, error, norm)");
}

msa_status msa__check_groups(const msa__check *at, const char *q_name, int64_t n_q_heads,
                             int64_t n_kv_heads)
{
    if (n_kv_heads >= 1 && n_q_heads >= n_kv_heads && n_q_heads % n_kv_heads == 0 &&
        n_q_heads / n_kv_heads <= 32) {
        return MSA_OK;
    }
    return MSA_FAIL(MSA_EINVAL, "%s: %s.shape[1] = %lld, must be 1..32 times Hkv = %lld", at->op,
                    q_name, (long long)n_q_heads, (long long)n_kv_heads);
}

/* One row: unique ids, ascending, at most the local block, then -1 to the end. */
static msa_status check_row(const msa__check *at, const int32_t *row, int64_t n_kept, int64_t token,
                            int64_t group, int64_t local_block)
{
    int64_t previous = -1;
    for (int64_t k = 0; k < n_kept; k++) {
        int64_t low = previous == -2 ? -1 : previous + 1; /* -2: the row has ended */
        int64_t high = previous == -2 ? -1 : local_block;
        if (row[k] == -1) {
            previous = -2;
        } else if (row[k] >= low && row[k] <= high) {
            previous = row[k];
        } else {
            return MSA_FAIL(
                MSA_EINVAL,
                "%s: blocks[%lld][%lld][%lld] = %d, must ascend within 0..%lld and end in -1",
                at->op, (long long)token, (long long)group, (long long)k, row[k],
                (long long)local_block);
        }
    }
    return MSA_OK;
}

msa_status msa__check_rows(const msa__check *at, const msa_tensor *blocks, const msa_kv_view *kv,
                           const int32_t *cu, int32_t block_size)
{
    for (int32_t s = 0; s < kv->n_seqs; s++) {
        int64_t first_position = msa__kv_length(kv, s) - (cu[s + 1] - cu[s]); /* (M2) */
        for (int64_t i = cu[s]; i < cu[s + 1]; i++) {
            int64_t local_block = (first_position + i - cu[s]) / block_size; /* (M3) */
            for (int64_t r = 0; r < blocks->shape[1]; r++) {
                const int32_t *row =
                    (const int32_t *)blocks->data + i * blocks->stride[0] + r * blocks->stride[1];
                MSA_TRY(check_row(at, row, blocks->shape[2], i, r, local_block));
            }
        }
    }
    return MSA_OK;
}

msa_status msa__check_window(const msa__check *at, int64_t window, int64_t n_sink_tokens)
{
    MSA_TRY(msa__check_range(at, "window", window, 0, INT64_MAX));
    if (window == 0 && n_sink_tokens != 0) {
        return MSA_FAIL(MSA_EINVAL, "%s: n_sink_tokens = %lld, must be 0 without a window", at->op,
                        (long long)n_sink_tokens);
    }
    return msa__check_range(at, "n_sink_tokens", n_sink_tokens, 0, INT64_MAX);
}

msa_status msa__check_sink_logit(const msa__check *at, const float *sink_logit, int64_t n_heads)
{
    if (!sink_logit) return MSA_OK;
    MSA_TRY(msa__check_array(at, "sink_logit", sink_logit, sizeof(*sink_logit)));
    if (!msa__can_read(at)) return MSA_OK;
    for (int64_t h = 0; h < n_heads; h++) {
        if (sink_logit[h] < INFINITY) continue;
        return MSA_FAIL(MSA_EINVAL, "%s: sink_logit[%lld] = %g, must be finite or -inf", at->op,
                        (long long)h, (double)sink_logit[h]);
    }
    return MSA_OK;
}

msa_status msa__check_attend_outputs(const msa__check *at, const msa_tensor *q,
                                     const msa_tensor *out, const msa_tensor *lse)
{
    MSA_TRY(msa__check_output(at, "out", out, 3, 1u << q->dtype));
    MSA_TRY(msa__check_dim(at, "out", out, 0, q->shape[0], "q's T"));
    MSA_TRY(msa__check_dim(at, "out", out, 1, q->shape[1], "q's Hq"));
    MSA_TRY(msa__check_dim(at, "out", out, 2, q->shape[2], "q's D"));
    if (msa__is_absent(at, lse)) return MSA_OK;
    MSA_TRY(msa__check_output(at, "lse", lse, 2, MSA__DTYPES_F32));
    MSA_TRY(msa__check_dim(at, "lse", lse, 0, q->shape[0], "q's T"));
    return msa__check_dim(at, "lse", lse, 1, q->shape[1], "q's Hq");
}

int64_t msa__kv_max_blocks(const msa_kv_view *kv, int32_t block_size)
{
    int64_t n_blocks = 0;
    for (int32_t s = 0; s < kv->n_seqs; s++) {
        int64_t n = msa__ceil_div(msa__kv_length(kv, s), block_size);
        if (n > n_blocks) n_blocks = n;
    }
    return n_blocks;
}
