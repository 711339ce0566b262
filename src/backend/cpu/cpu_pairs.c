/* See cpu_pairs.h. */
#include "backend/cpu/cpu_pairs.h"

#include <string.h>

void msa__pairs_scratch_take(const msa__selection *selection, msa__arena *arena,
                             int64_t tile_tokens, msa__pairs_scratch *scratch)
{
    int64_t n_choices = selection->blocks ? tile_tokens * selection->blocks->shape[2] : 0;
    scratch->choices = msa__take(arena, n_choices, sizeof(msa__choice));
    scratch->sorted = msa__take(arena, n_choices, sizeof(msa__choice));
    scratch->tokens = msa__take(arena, MSA__BATCH_TOKENS, sizeof(int32_t));
}

static msa__pairs block_pairs(const msa__selection *selection, int32_t seq, int64_t block,
                              const int32_t *tokens)
{
    int64_t first_key = block * selection->block_size;
    int64_t left = msa__kv_length(selection->kv, seq) - first_key;
    int32_t n_keys = left < selection->block_size ? (int32_t)left : selection->block_size;
    return (msa__pairs){seq, block, first_key, n_keys, tokens, 0};
}

/* Tokens first..end-1 in batches. */
static void visit_range(msa__pairs *pairs, int64_t first, int64_t end, int64_t batch,
                        int32_t *tokens, msa__pairs_fn visit, void *arg)
{
    for (int64_t i = first; i < end; i += batch) {
        pairs->n = end - i < batch ? end - i : batch;
        for (int64_t t = 0; t < pairs->n; t++) tokens[t] = (int32_t)(i + t);
        visit(arg, pairs);
    }
}

/* Without selection: tokens first..end-1 see some key of the block; both are clamped to [low,
 * high].
 */
static void seeing_tokens(const msa__selection *selection, const msa__pairs *pairs, int64_t low,
                          int64_t high, int64_t *first, int64_t *end)
{
    int64_t at_zero = -msa__position(selection, pairs->seq, 0); /* the token at position 0 */
    int64_t last_key = pairs->first_key + pairs->n_keys - 1;
    *first = at_zero + pairs->first_key;
    *end = high;
    if (selection->window && pairs->first_key >= selection->n_sink_tokens &&
        selection->window < high - at_zero - last_key) {
        *end = at_zero + last_key + selection->window;
    }
    if (*first < low) *first = low;
}

static void walk_choices(const msa__selection *selection, const msa__tile *tile, int64_t group,
                         int64_t batch, const msa__pairs_scratch *scratch, msa__pairs_fn visit,
                         void *arg)
{
    int64_t n;
    const msa__choice *choices =
        msa__list_choices(selection->blocks, tile, group, scratch->choices, scratch->sorted, &n);
    for (int64_t i = 0; i < n;) {
        msa__pairs pairs = block_pairs(selection, tile->seq, choices[i].block, scratch->tokens);
        while (i < n && choices[i].block == pairs.block && pairs.n < batch) {
            scratch->tokens[pairs.n++] = (int32_t)(tile->first_token + choices[i++].token);
        }
        visit(arg, &pairs);
    }
}

void msa__walk_tile(const msa__selection *selection, const msa__tile *tile, int64_t group,
                    int64_t batch, const msa__pairs_scratch *scratch, msa__pairs_fn visit,
                    void *arg)
{
    if (selection->blocks) {
        walk_choices(selection, tile, group, batch, scratch, visit, arg);
        return;
    }
    int64_t last_token = tile->first_token + tile->n_tokens;
    int64_t last_position = tile->first_position + tile->n_tokens - 1;
    for (int64_t b = 0; b * selection->block_size <= last_position; b++) {
        msa__pairs pairs = block_pairs(selection, tile->seq, b, scratch->tokens);
        int64_t first, end;
        seeing_tokens(selection, &pairs, tile->first_token, last_token, &first, &end);
        visit_range(&pairs, first, end, batch, scratch->tokens, visit, arg);
    }
}

int64_t msa__max_blocks(const msa__selection *selection)
{
    return selection->kv->k.shape[0] / selection->block_size + selection->kv->n_seqs;
}

int64_t msa__list_blocks(const msa__selection *selection, msa__block_ref *refs)
{
    int64_t n = 0;
    for (int32_t s = 0; s < selection->kv->n_seqs; s++) {
        int64_t n_blocks = msa__n_blocks(selection->kv, s, selection->block_size);
        for (int64_t b = 0; b < n_blocks; b++) refs[n++] = (msa__block_ref){s, (int32_t)b};
    }
    return n;
}

void msa__walk_block(const msa__selection *selection, msa__block_ref ref, int64_t number,
                     int64_t group, int64_t batch, int32_t *tokens, msa__pairs_fn visit, void *arg)
{
    const int32_t *cu = selection->cu_seqlens_q;
    msa__pairs pairs = block_pairs(selection, ref.seq, ref.block, tokens);
    if (!selection->blocks) {
        int64_t first, end;
        seeing_tokens(selection, &pairs, cu[ref.seq], cu[ref.seq + 1], &first, &end);
        visit_range(&pairs, first, end, batch, tokens, visit, arg);
        return;
    }
    msa__block_queries queries = msa__queries_of(selection->index, group, number);
    for (int64_t i = 0; i < queries.n; i += batch) {
        pairs.tokens = queries.rows + i;
        pairs.n = queries.n - i < batch ? queries.n - i : batch;
        visit(arg, &pairs);
    }
}

static int32_t clamp(int64_t x, int32_t high)
{
    return x < 0 ? 0 : x < high ? (int32_t)x : high;
}

msa__key_range msa__keys_of(const msa__selection *selection, const msa__pairs *pairs, int64_t token)
{
    int64_t ahead = msa__position(selection, pairs->seq, token) + 1 - pairs->first_key;
    msa__key_range range = {0, clamp(ahead, pairs->n_keys), 0};
    if (!selection->window) return range;
    range.begin = clamp(ahead - selection->window, pairs->n_keys);
    range.sink = clamp(selection->n_sink_tokens - pairs->first_key, pairs->n_keys);
    return range;
}

void msa__find_listed(const msa_tensor *tokens, int64_t token, const msa__pairs *pairs,
                      uint8_t *keep)
{
    const int32_t *row = (const int32_t *)tokens->data + token * tokens->stride[0];
    uint32_t first = (uint32_t)pairs->first_key, end = first + (uint32_t)pairs->n_keys;
    int64_t low = 0, high = tokens->shape[1];
    while (low < high) { /* the first entry at or after the block; as unsigned, -1 is the largest */
        int64_t middle = (low + high) / 2;
        if ((uint32_t)row[middle] < first) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    memset(keep, 0, (size_t)pairs->n_keys);
    for (; low < tokens->shape[1] && (uint32_t)row[low] < end; low++) {
        keep[(uint32_t)row[low] - first] = 1;
    }
}
