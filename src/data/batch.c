/* Filling a batch; see batch.h. */
#include "data/batch.h"

#include <string.h>

void msa__batch_clear(msa__batch *batch)
{
    batch->n_tokens = batch->n_sequences = batch->n_targets = 0;
    batch->cu_seqlens[0] = 0;
}

void msa__batch_add(msa__batch *batch, const int32_t *tokens, int64_t n, int32_t next,
                    int64_t first_target)
{
    int32_t begin = batch->n_tokens;
    memcpy(batch->tokens + begin, tokens, (size_t)n * sizeof(*tokens));
    for (int64_t i = 0; i < n; i++) {
        int32_t target = i + 1 < n ? tokens[i + 1] : next;
        if (i < first_target) target = -1;
        batch->targets[begin + i] = target;
        batch->positions[begin + i] = (int32_t)i;
        batch->n_targets += target >= 0;
    }
    batch->n_tokens = begin + (int32_t)n;
    batch->cu_seqlens[++batch->n_sequences] = batch->n_tokens;
}
