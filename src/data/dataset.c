/* The mixture of sources; see dataset.h.
 *
 * Which source fills row g, and which of its own rows it is, comes from a chain of choices. With p
 * the first source's share of the rows, it has filled floor(p g) of the first g rows: it fills row
 * g when that number grows there. Otherwise g - floor(p g) counts the rows of all others, and the
 * same choice is made among them. Every stretch of rows thus holds each source in its share, to
 * within a row.
 */
#include "data/dataset.h"

#include "base/error.h"
#include "base/rng.h"
#include "data/source.h"
#include "model/checksum.h"
#include "model/json_optional.h"

#include <stdlib.h>

#define SHARE_BITS 24
#define MAX_ROWS   (UINT64_C(1) << 38) /* of a run: times a share it fits in 64 bits */

struct msa__dataset {
    msa__vocabulary vocabulary;
    msa__source *sources;
    uint64_t *shares; /* of the rows that no earlier source fills, times 2^SHARE_BITS */
    int32_t n_sources;
    uint64_t fingerprint;
};

/* ---- open --------------------------------------------------------------------------------- */

/* Shares of the chain of choices, and a key for each source. */
static void finish_sources(msa__dataset *d, uint64_t seed)
{
    double rest = 0; /* weight of this source and those behind it */
    d->fingerprint = msa__checksum(d->vocabulary.fingerprint, &seed, sizeof(seed));
    for (int32_t i = d->n_sources - 1; i >= 0; i--) {
        msa__source *s = &d->sources[i];
        uint32_t words[4];
        msa__philox(seed, (uint64_t)i, 0, words);
        s->key = (uint64_t)words[1] << 32 | words[0];
        rest += s->weight;
        double share = s->weight / rest * (1 << SHARE_BITS);
        d->shares[i] = share < 1 ? 1 : (uint64_t)share;
        d->fingerprint = msa__checksum(d->fingerprint, &d->shares[i], sizeof(d->shares[i]));
        d->fingerprint = msa__checksum(d->fingerprint, &s->fingerprint, sizeof(s->fingerprint));
    }
}

static msa_status open_sources(msa__dataset *d, const msa__json *list,
                               const msa__source_context *context)
{
    if (list->n_children == 0) {
        return msa__json_fail(list, MSA_EFORMAT, "must hold at least one source");
    }
    d->sources = calloc((size_t)list->n_children, sizeof(*d->sources));
    d->shares = calloc((size_t)list->n_children, sizeof(*d->shares));
    if (!d->sources || !d->shares) return MSA_FAIL(MSA_ENOMEM, "dataset: no memory for sources");
    MSA__JSON_EACH(item, list)
    {
        MSA_TRY(msa__source_open(&d->sources[d->n_sources++], item, context));
    }
    return MSA_OK;
}

static msa_status open_dataset(msa__dataset *d, const msa__json *description,
                               msa__source_context *context)
{
    static const char *const known[] = {"tokenizer", "cache", "sources", NULL};
    const msa__json *tokenizer, *sources, *cache;
    const char *dir;
    MSA_TRY(msa__json_type_is(description, MSA__JSON_OBJECT));
    MSA_TRY(msa__refuse_unknown(description, known));
    MSA_TRY(msa__json_need(description, "tokenizer", &tokenizer));
    MSA_TRY(msa__json_string(tokenizer, &dir));
    cache = msa__json_get(description, "cache");
    if (cache) MSA_TRY(msa__json_string(cache, &context->cache));
    MSA_TRY(need_typed(description, "sources", MSA__JSON_ARRAY, &sources));
    MSA_TRY(msa__vocabulary_open(&d->vocabulary, dir));
    context->vocabulary = &d->vocabulary;
    return open_sources(d, sources, context);
}

msa_status msa__dataset_open(msa__dataset **out, const msa__json *description, const char *cache,
                             uint64_t seed, msa_progress_fn progress, void *user)
{
    *out = NULL;
    msa__dataset *d = calloc(1, sizeof(*d));
    if (!d) return MSA_FAIL(MSA_ENOMEM, "dataset: no memory");
    msa__source_context context = {NULL, cache, progress, user};
    msa_status status = open_dataset(d, description, &context);
    if (status != MSA_OK) {
        msa__dataset_close(d);
        return status;
    }
    finish_sources(d, seed);
    *out = d;
    return MSA_OK;
}

void msa__dataset_close(msa__dataset *dataset)
{
    if (!dataset) return;
    for (int32_t i = 0; i < dataset->n_sources; i++) msa__source_close(&dataset->sources[i]);
    msa__vocabulary_close(&dataset->vocabulary);
    free(dataset->sources);
    free(dataset->shares);
    free(dataset);
}

/* ---- batches ------------------------------------------------------------------------------ */

/* The source of row *row; *row becomes its number among the rows of that source. */
static const msa__source *choose_source(const msa__dataset *dataset, uint64_t *row)
{
    for (int32_t i = 0;; i++) {
        uint64_t before = *row * dataset->shares[i] >> SHARE_BITS;
        uint64_t after = (*row + 1) * dataset->shares[i] >> SHARE_BITS;
        if (after > before) {
            *row = before;
            return &dataset->sources[i];
        }
        *row -= before;
    }
}

msa_status msa__dataset_batch(const msa__dataset *dataset, uint64_t index, int64_t n_tokens,
                              int64_t length, msa__batch *out)
{
    if (length < 1 || n_tokens < length || n_tokens > INT32_MAX || n_tokens % length != 0) {
        return MSA_FAIL(MSA_EINVAL,
                        "dataset: %lld tokens in sequences of %lld, must be a positive multiple",
                        (long long)n_tokens, (long long)length);
    }
    uint64_t rows = (uint64_t)(n_tokens / length);
    if (index >= MAX_ROWS / rows) {
        return MSA_FAIL(MSA_EINVAL, "dataset: batch %llu, must be below %llu",
                        (unsigned long long)index, (unsigned long long)(MAX_ROWS / rows));
    }
    msa__batch_clear(out);
    for (uint64_t i = 0; i < rows; i++) {
        uint64_t row = index * rows + i;
        const msa__source *s = choose_source(dataset, &row);
        MSA_TRY(msa__source_row(s, &dataset->vocabulary, row, length, out));
    }
    return MSA_OK;
}

const msa_tokenizer *msa__dataset_tokenizer(const msa__dataset *dataset)
{
    return dataset->vocabulary.tokenizer;
}

int64_t msa__dataset_tokens(const msa__dataset *dataset)
{
    int64_t n = 0;
    for (int32_t i = 0; i < dataset->n_sources; i++) n += dataset->sources[i].tokens.n_tokens;
    return n;
}

uint64_t msa__dataset_fingerprint(const msa__dataset *dataset)
{
    return dataset->fingerprint;
}
