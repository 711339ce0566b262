/* Filling a batch; see batch.h. */
#include "data/batch.h"

void msa__batch_clear(msa__batch *batch)
{
    batch->n_tokens = batch->n_sequences = batch->n_targets = 0;
    batch->cu_seqlens[0] = 0;
}

static void add_token(msa__batch *batch, int32_t token, int32_t target)
{
    int32_t at = batch->n_tokens++;
    batch->tokens[at] = token;
    batch->targets[at] = target;
    batch->positions[at] = at - batch->cu_seqlens[batch->n_sequences];
    batch->n_targets += target >= 0;
}

static void end_sequence(msa__batch *batch)
{
    batch->cu_seqlens[++batch->n_sequences] = batch->n_tokens;
}

void msa__batch_add(msa__batch *batch, const int32_t *tokens, int64_t n, int32_t next,
                    int64_t first_target)
{
    for (int64_t i = 0; i < n; i++) {
        int32_t target = i + 1 < n ? tokens[i + 1] : next;
        add_token(batch, tokens[i], i < first_target ? -1 : target);
    }
    end_sequence(batch);
}

void msa__batch_pad(msa__batch *batch, int32_t token, int64_t n)
{
    for (int64_t i = 0; i < n; i++) add_token(batch, token, -1);
    end_sequence(batch);
}
