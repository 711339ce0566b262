/* See check_selection.h. */
#include "ops/check_selection.h"

#include "base/overflow.h"
#include "ops/kv_tile.h"

#define DTYPES_PACKED 0x03u /* f32, bf16 */

msa_status msa__check_packed_kv(const msa__check *at, msa_kv_view *kv, const int32_t *cu_seqlens_q,
                                const msa__kv_shape *shape)
{
    if (kv->page_table) {
        return MSA_FAIL(MSA_EINVAL,
                        "%s: kv.page_table is set, must be NULL: gradients take packed "
                        "views",
                        at->op);
    }
    int32_t has_heads = shape->head_dim > 0, has_values = has_heads && !shape->keys_only;
    if (has_heads) MSA_TRY(msa__check_tensor(at, "kv.k", &kv->k, 3, DTYPES_PACKED));
    if (has_values) MSA_TRY(msa__check_tensor(at, "kv.v", &kv->v, 3, DTYPES_PACKED));
    if (shape->index_dim > 0) {
        MSA_TRY(msa__check_tensor(at, "kv.k_index", &kv->k_index, 2, DTYPES_PACKED));
    }
    return msa__check_kv(at, kv, cu_seqlens_q, shape);
}

msa_status msa__check_row_numbers(const msa__check *at, const char *name, const msa_tensor *t,
                                  int64_t n_rows, int64_t n_heads)
{
    MSA_TRY(msa__check_tensor(at, name, t, 2, MSA__DTYPES_F32));
    MSA_TRY(msa__check_dim(at, name, t, 0, n_rows, "q's T"));
    return msa__check_dim(at, name, t, 1, n_heads, "the heads");
}

/* ---- reverse index --------------------------------------------------------------------------- */

int64_t msa__reverse_capacity(const msa_kv_view *kv, int32_t block_size)
{
    return kv->k.shape[0] / block_size + kv->n_seqs;
}

msa_status msa__check_reverse_shapes(const msa__check *at, const msa_reverse_index *index,
                                     const msa_tensor *blocks, const msa_kv_view *kv,
                                     int32_t block_size, int32_t is_output)
{
    const msa_tensor *offsets = &index->offsets, *queries = &index->queries;
    int64_t n_entries;
    if (__builtin_mul_overflow(blocks->shape[0], blocks->shape[2], &n_entries) ||
        n_entries > INT32_MAX) {
        return MSA_FAIL(MSA_EINVAL, "%s: blocks.shape[0] = %lld, must give T K below 2^31", at->op,
                        (long long)blocks->shape[0]);
    }
    if (is_output) {
        MSA_TRY(msa__check_output(at, "index.offsets", offsets, 2, MSA__DTYPES_I32));
        MSA_TRY(msa__check_output(at, "index.queries", queries, 2, MSA__DTYPES_I32));
    } else {
        MSA_TRY(msa__check_tensor(at, "index.offsets", offsets, 2, MSA__DTYPES_I32));
        MSA_TRY(msa__check_tensor(at, "index.queries", queries, 2, MSA__DTYPES_I32));
    }
    MSA_TRY(msa__check_dim(at, "index.offsets", offsets, 0, blocks->shape[1], "Hkv"));
    MSA_TRY(msa__check_dim(at, "index.offsets", offsets, 1,
                           msa__reverse_capacity(kv, block_size) + 1, "capacity + 1"));
    MSA_TRY(msa__check_dim(at, "index.queries", queries, 0, blocks->shape[1], "Hkv"));
    return msa__check_dim(at, "index.queries", queries, 1, n_entries, "T K");
}

static const int32_t *row_of(const msa_tensor *blocks, int64_t token, int64_t group)
{
    return (const int32_t *)blocks->data + token * blocks->stride[0] + group * blocks->stride[1];
}

static int row_has(const int32_t *row, int64_t n_kept, int64_t block)
{
    for (int64_t k = 0; k < n_kept && row[k] >= 0; k++) {
        if (row[k] == block) return 1;
    }
    return 0;
}

/* Entries begin..end-1 are tokens first..last-1 in ascending order that selected the block. */
static int lists_block(const int32_t *queries, int32_t begin, int32_t end, int32_t first,
                       int32_t last, const msa_tensor *blocks, int64_t group, int64_t block)
{
    int32_t previous = first - 1;
    for (int32_t e = begin; e < end; e++) {
        if (queries[e] <= previous || queries[e] >= last) return 0;
        previous = queries[e];
        if (!row_has(row_of(blocks, previous, group), blocks->shape[2], block)) return 0;
    }
    return 1;
}

/* Every entry is a selected pair and no pair is listed twice; with as many entries as pairs the
 * index is the transpose. */
static msa_status check_group(const msa__check *at, const msa_tensor *blocks,
                              const msa_reverse_index *index, const msa_kv_view *kv,
                              const int32_t *cu, int32_t block_size, int64_t group)
{
    const int32_t *offsets =
        (const int32_t *)index->offsets.data + group * index->offsets.stride[0];
    const int32_t *queries =
        (const int32_t *)index->queries.data + group * index->queries.stride[0];
    int64_t number = 0, n_pairs = 0, capacity = index->offsets.shape[1] - 1;
    for (int64_t c = 0; c <= capacity; c++) {
        int32_t low = c ? offsets[c - 1] : 0;
        if (offsets[c] >= low && offsets[c] <= (c ? index->queries.shape[1] : 0)) continue;
        return MSA_FAIL(MSA_EINVAL, "%s: index.offsets[%lld][%lld] = %d, must be %d..%lld", at->op,
                        (long long)group, (long long)c, offsets[c], low,
                        (long long)(c ? index->queries.shape[1] : 0));
    }
    for (int32_t s = 0; s < kv->n_seqs; s++) {
        int64_t n_blocks = msa__ceil_div(msa__kv_length(kv, s), block_size);
        for (int64_t b = 0; b < n_blocks; b++, number++) {
            if (lists_block(queries, offsets[number], offsets[number + 1], cu[s], cu[s + 1], blocks,
                            group, b)) {
                continue;
            }
            return MSA_FAIL(MSA_EINVAL,
                            "%s: index.queries[%lld] for block %lld of sequence %d, must ascend "
                            "and be rows that selected it",
                            at->op, (long long)group, (long long)b, s);
        }
    }
    for (int64_t i = 0; i < blocks->shape[0]; i++) {
        const int32_t *row = row_of(blocks, i, group);
        for (int64_t k = 0; k < blocks->shape[2] && row[k] >= 0; k++) n_pairs++;
    }
    if (offsets[capacity] == n_pairs && offsets[number] == n_pairs) return MSA_OK;
    return MSA_FAIL(MSA_EINVAL,
                    "%s: index.offsets[%lld][%lld] = %d, must be the %lld selected pairs", at->op,
                    (long long)group, (long long)capacity, offsets[capacity], (long long)n_pairs);
}

msa_status msa__check_selection(const msa__check *at, const msa_tensor *blocks,
                                const msa_reverse_index *index, const msa_kv_view *kv,
                                const int32_t *cu_seqlens_q, int32_t block_size, int64_t n_tokens,
                                int64_t n_kv_heads)
{
    MSA_TRY(msa__check_tensor(at, "blocks", blocks, 3, MSA__DTYPES_I32));
    MSA_TRY(msa__check_dim(at, "blocks", blocks, 0, n_tokens, "q's T"));
    MSA_TRY(msa__check_dim(at, "blocks", blocks, 1, n_kv_heads, "Hkv"));
    MSA_TRY(msa__check_range(at, "blocks.shape[2]", blocks->shape[2], 1, 64));
    MSA_TRY(msa__check_reverse_shapes(at, index, blocks, kv, block_size, 0));
    if (!msa__can_read(at)) return MSA_OK;
    MSA_TRY(msa__check_rows(at, blocks, kv, cu_seqlens_q, block_size));
    for (int64_t r = 0; r < n_kv_heads; r++) {
        MSA_TRY(check_group(at, blocks, index, kv, cu_seqlens_q, block_size, r));
    }
    return MSA_OK;
}
