/* Learning merges; see bpe_train.h. */
#include "data/bpe_train.h"

#include "base/alloc.h"
#include "base/error.h"
#include "data/pair_table.h"
#include "model/byte_alphabet.h"

#include <stdlib.h>
#include <string.h>

#define LEAST_COUNT    2 /* of a pair that is worth a token */
#define PROGRESS_STEPS 64

/* The pieces as tokens, which become fewer in place. */
typedef struct words {
    int32_t *tokens;
    int64_t *starts; /* [n + 1] in tokens */
    int32_t *lengths;
    int64_t n;
} words;

typedef struct learner {
    const msa__pieces *pieces;
    words words;
    msa__pair_table pairs;
    msa__names spellings; /* bytes of a token to its id: two merges may make the same bytes */
    msa__learned *out;
} learner;

static msa_status no_memory(void)
{
    return MSA_FAIL(MSA_ENOMEM, "train_tokenizer: no memory to learn merges");
}

/* ---- words -------------------------------------------------------------------------------- */

static msa_status create_words(words *w, const msa__pieces *pieces)
{
    int64_t n_bytes = 0;
    int32_t ids[256];
    for (int32_t i = 0; i < 256; i++) ids[msa__byte_in_alphabet(i)] = i;
    for (int64_t i = 0; i < pieces->n; i++) n_bytes += pieces->items[i].n;
    w->n = pieces->n;
    w->tokens = malloc((size_t)(n_bytes + 1) * sizeof(*w->tokens));
    w->starts = malloc((size_t)(w->n + 1) * sizeof(*w->starts));
    w->lengths = malloc((size_t)(w->n + 1) * sizeof(*w->lengths));
    if (!w->tokens || !w->starts || !w->lengths) return no_memory();
    int64_t at = 0;
    for (int64_t i = 0; i < w->n; i++) {
        const msa__piece *piece = &pieces->items[i];
        w->starts[i] = at;
        w->lengths[i] = (int32_t)piece->n;
        for (uint32_t k = 0; k < piece->n; k++) {
            w->tokens[at++] = ids[(unsigned char)piece->bytes[k]];
        }
    }
    return MSA_OK;
}

static msa_status count_pairs(learner *l)
{
    for (int64_t i = 0; i < l->words.n; i++) {
        const int32_t *tokens = l->words.tokens + l->words.starts[i];
        for (int32_t k = 0; k + 1 < l->words.lengths[i]; k++) {
            MSA_TRY(msa__pairs_change(&l->pairs, msa__pair_key(tokens[k], tokens[k + 1]),
                                      l->pieces->items[i].count, (int32_t)i));
        }
    }
    return msa__pairs_settle(&l->pairs);
}

/* The pair becomes the product wherever it occurs in a word, from the left. */
static msa_status merge_word(learner *l, int32_t word, msa__token_pair pair, int32_t product)
{
    int32_t *tokens = l->words.tokens + l->words.starts[word];
    int32_t n = l->words.lengths[word], to = 0;
    int64_t count = l->pieces->items[word].count;
    for (int32_t i = 0; i < n; i++) {
        if (i + 1 == n || tokens[i] != pair.left || tokens[i + 1] != pair.right) {
            tokens[to++] = tokens[i];
            continue;
        }
        if (to > 0) {
            uint64_t gone = msa__pair_key(tokens[to - 1], pair.left);
            uint64_t fresh = msa__pair_key(tokens[to - 1], product);
            MSA_TRY(msa__pairs_change(&l->pairs, gone, -count, word));
            MSA_TRY(msa__pairs_change(&l->pairs, fresh, count, word));
        }
        if (i + 2 < n) {
            uint64_t gone = msa__pair_key(pair.right, tokens[i + 2]);
            uint64_t fresh = msa__pair_key(product, tokens[i + 2]);
            MSA_TRY(msa__pairs_change(&l->pairs, gone, -count, word));
            MSA_TRY(msa__pairs_change(&l->pairs, fresh, count, word));
        }
        tokens[to++] = product;
        i++;
    }
    l->words.lengths[word] = to;
    return MSA_OK;
}

/* ---- tokens ------------------------------------------------------------------------------- */

/* The id of left and right joined, a new one if no token has these bytes. */
static msa_status add_token(learner *l, const msa__token_bytes *left, const msa__token_bytes *right,
                            int32_t *id)
{
    msa__learned *out = l->out;
    size_t n = (size_t)left->n + right->n;
    char *bytes = malloc(n);
    if (!bytes) return no_memory();
    memcpy(bytes, left->bytes, left->n);
    if (right->n) memcpy(bytes + left->n, right->bytes, right->n);
    msa_status status = msa__names_add(&l->spellings, bytes, n, out->n_tokens, id);
    if (status != MSA_OK || *id >= 0) {
        free(bytes);
        return status;
    }
    *id = out->n_tokens++;
    out->storage[*id] = bytes;
    out->tokens[*id] = (msa__token_bytes){bytes, (uint32_t)n};
    return MSA_OK;
}

static msa_status add_bytes(learner *l)
{
    for (int32_t i = 0; i < 256; i++) {
        int32_t id;
        char byte = (char)msa__byte_in_alphabet(i);
        MSA_TRY(add_token(l, &(msa__token_bytes){&byte, 1}, &(msa__token_bytes){"", 0}, &id));
    }
    return MSA_OK;
}

static msa_status create_tables(learner *l, int32_t n_tokens)
{
    msa__learned *out = l->out;
    size_t n = (size_t)n_tokens;
    out->tokens = calloc(n, sizeof(*out->tokens));
    out->storage = calloc(n, sizeof(*out->storage));
    out->merges = calloc(2 * n, sizeof(*out->merges));
    if (!out->tokens || !out->storage || !out->merges) return no_memory();
    MSA_TRY(msa__names_create(&l->spellings, &msa__default_allocator, n));
    MSA_TRY(msa__pairs_create(&l->pairs));
    MSA_TRY(add_bytes(l));
    return create_words(&l->words, l->pieces);
}

static msa_status merge_pair(learner *l, const msa__pair *pair)
{
    int32_t product;
    msa__learned *out = l->out;
    msa__token_pair merge = {(int32_t)(pair->key >> 32), (int32_t)(pair->key & UINT32_MAX)};
    MSA_TRY(add_token(l, &out->tokens[merge.left], &out->tokens[merge.right], &product));
    out->merges[out->n_merges++] = merge;
    for (int32_t i = 0; i < pair->n_words; i++) {
        MSA_TRY(merge_word(l, pair->words[i], merge, product));
    }
    return msa__pairs_settle(&l->pairs);
}

static msa_status learn(learner *l, int32_t n_tokens, msa_progress_fn progress, void *user)
{
    msa__learned *out = l->out;
    MSA_TRY(create_tables(l, n_tokens));
    MSA_TRY(count_pairs(l));
    while (out->n_tokens < n_tokens) {
        msa__pair pair;
        int found = msa__pairs_take(&l->pairs, &pair);
        int worth = found && pair.count >= LEAST_COUNT && out->n_merges < 2 * n_tokens;
        msa_status status = worth ? merge_pair(l, &pair) : MSA_OK;
        if (found) free(pair.words);
        MSA_TRY(status);
        if (!worth) {
            return MSA_FAIL(MSA_EINVAL,
                            "train_tokenizer: %d tokens, the text gives %d: no further pair occurs "
                            "twice",
                            n_tokens, out->n_tokens);
        }
        if (progress && out->n_merges % PROGRESS_STEPS == 0) {
            progress(user, out->n_tokens, n_tokens);
        }
    }
    return MSA_OK;
}

msa_status msa__bpe_learn(msa__learned *out, const msa__pieces *pieces, int32_t n_tokens,
                          msa_progress_fn progress, void *user)
{
    learner l = {.pieces = pieces, .out = out};
    msa_status status = learn(&l, n_tokens, progress, user);
    msa__names_destroy(&l.spellings);
    msa__pairs_free(&l.pairs);
    free(l.words.tokens);
    free(l.words.starts);
    free(l.words.lengths);
    return status;
}

void msa__learned_free(msa__learned *learned)
{
    for (int32_t i = 0; i < learned->n_tokens; i++) free(learned->storage[i]);
    free(learned->tokens);
    free(learned->storage);
    free(learned->merges);
    memset(learned, 0, sizeof(*learned));
}
