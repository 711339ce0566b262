/* See reverse_index.h. */
#include "ops/reverse_index.h"

#include <string.h>

/* Visit the selected pairs in ascending order of the queries: count them, or place them. */
static void visit_pairs(const msa_reverse_index_args *args, int64_t group, int32_t *slots,
                        int32_t *queries)
{
    const msa_tensor *blocks = &args->blocks;
    int64_t first = 0; /* number of the sequence's block 0 */
    for (int32_t s = 0; s < args->kv.n_seqs; s++) {
        for (int32_t i = args->cu_seqlens_q[s]; i < args->cu_seqlens_q[s + 1]; i++) {
            const int32_t *row =
                (const int32_t *)blocks->data + i * blocks->stride[0] + group * blocks->stride[1];
            for (int64_t k = 0; k < blocks->shape[2] && row[k] >= 0; k++) {
                int32_t slot = slots[first + row[k]]++;
                if (queries) queries[slot] = i;
            }
        }
        first += msa__n_blocks(&args->kv, s, args->block_size);
    }
}

/* offsets[c + 1] counts block c, then is where block c starts, then where it ends. */
void msa__reverse_group(const msa_reverse_index_args *args, int64_t group)
{
    const msa_reverse_index *index = &args->index;
    int32_t *offsets = (int32_t *)index->offsets.data + group * index->offsets.stride[0];
    int32_t *queries = (int32_t *)index->queries.data + group * index->queries.stride[0];
    int64_t capacity = index->offsets.shape[1] - 1;
    int32_t n_before = 0;
    memset(offsets, 0, (size_t)(capacity + 1) * sizeof(*offsets));
    visit_pairs(args, group, offsets + 1, NULL);
    for (int64_t c = 0; c < capacity; c++) {
        int32_t count = offsets[c + 1];
        offsets[c + 1] = n_before;
        n_before += count;
    }
    visit_pairs(args, group, offsets + 1, queries);
}
