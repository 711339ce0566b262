/* Rows of tokens from shards; see token_source.h. */
#include "data/token_source.h"

#include "base/error.h"
#include "base/permute.h"
#include "base/rng.h"

#include <stdlib.h>
#include <string.h>

msa_status msa__token_source_open(msa__token_source *source, const msa__file_list *shards,
                                  const msa__vocabulary *vocabulary)
{
    source->shards = calloc((size_t)shards->n, sizeof(*source->shards));
    source->first = calloc((size_t)shards->n + 1, sizeof(*source->first));
    if (!source->shards || !source->first) {
        return MSA_FAIL(MSA_ENOMEM, "dataset: no memory for %lld shards", (long long)shards->n);
    }
    for (int64_t i = 0; i < shards->n; i++) {
        msa__shard *shard = &source->shards[i];
        MSA_TRY(msa__shard_open(shard, shards->paths[i], vocabulary));
        source->n_shards = i + 1;
        source->n_tokens += shard->n_tokens;
        source->first[i + 1] = source->n_tokens;
    }
    return MSA_OK;
}

void msa__token_source_close(msa__token_source *source)
{
    for (int64_t i = 0; i < source->n_shards; i++) msa__shard_close(&source->shards[i]);
    free(source->shards);
    free(source->first);
    memset(source, 0, sizeof(*source));
}

int64_t msa__token_source_rows(const msa__token_source *source, int64_t length)
{
    return source->n_tokens < length ? 1 : source->n_tokens / length;
}

/* The last i < n with starts[i] <= at, for ascending starts[0] <= at < starts[n]. */
static int64_t find_interval(const int64_t *starts, int64_t n, int64_t at)
{
    int64_t low = 0, high = n;
    while (high - low > 1) {
        int64_t middle = low + (high - low) / 2;
        if (starts[middle] <= at)
            low = middle;
        else
            high = middle;
    }
    return low;
}

/* Rounds of the order of an epoch's rows. */
#define ORDER_ROUNDS 6

static uint32_t mix_order(const void *user, uint64_t round, uint64_t right)
{
    const uint64_t *key = user;
    uint32_t words[4];
    msa__philox(*key, right, round, words);
    return words[0];
}

void msa__token_source_row(const msa__token_source *source, uint64_t key, uint64_t row,
                           int64_t length, msa__batch *out)
{
    uint64_t rows = (uint64_t)msa__token_source_rows(source, length), epoch = row / rows;
    uint32_t words[4];
    msa__philox(key, epoch, 0, words);
    uint64_t order = (uint64_t)words[1] << 32 | words[0];
    uint64_t start = (uint64_t)words[3] << 32 | words[2];
    uint64_t n_tokens = (uint64_t)source->n_tokens;
    uint64_t place =
        msa__permute(rows, row % rows, ORDER_ROUNDS, mix_order, &order) * (uint64_t)length;
    int64_t at = (int64_t)((start % n_tokens + place) % n_tokens);
    for (int64_t left = length; left > 0;) {
        int64_t i = find_interval(source->first, source->n_shards, at);
        const msa__shard *shard = &source->shards[i];
        int64_t in_shard = at - source->first[i];
        int64_t document = find_interval(shard->starts, shard->n_documents, in_shard);
        int64_t rest = shard->starts[document + 1] - in_shard;
        int64_t n = rest < left ? rest : left;
        int32_t next = n < rest ? shard->tokens[in_shard + n] : -1;
        msa__batch_add(out, shard->tokens + in_shard, n, next, 0);
        left -= n;
        at = (at + n) % source->n_tokens;
    }
}

void msa__token_source_copy(const msa__token_source *source, int64_t at, int32_t *to, int64_t n)
{
    while (n > 0) {
        int64_t i = find_interval(source->first, source->n_shards, at);
        int64_t in_shard = at - source->first[i], rest = source->shards[i].n_tokens - in_shard;
        int64_t some = rest < n ? rest : n;
        memcpy(to, source->shards[i].tokens + in_shard, (size_t)some * sizeof(*to));
        at = (at + some) % source->n_tokens;
        to += some;
        n -= some;
    }
}
