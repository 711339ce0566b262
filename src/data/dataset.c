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
#include "data/token_source.h"
#include "data/tokenize.h"
#include "model/checksum.h"
#include "model/json_optional.h"

#include <stdlib.h>
#include <string.h>

#define SHARE_BITS 24
#define MAX_ROWS   (UINT64_C(1) << 38) /* of a run: times a share it fits in 64 bits */

typedef struct source {
    msa__token_source tokens;
    double weight;
    uint64_t share; /* of the rows that no earlier source fills, times 2^SHARE_BITS */
    uint64_t key;   /* of its permutations */
} source;

struct msa__dataset {
    msa__vocabulary vocabulary;
    source *sources;
    int32_t n_sources;
    uint64_t fingerprint;
};

/* What opening needs besides the dataset. */
typedef struct opener {
    msa__dataset *dataset;
    const char *cache;
    uint64_t seed;
    msa_progress_fn progress;
    void *user;
} opener;

/* ---- open --------------------------------------------------------------------------------- */

/* The shards of a source: made from text, or there already. */
static msa_status list_shards(const opener *o, const msa__json *description, msa__file_list *shards)
{
    const msa__json *text = msa__json_get(description, "text");
    const char *path;
    if (!text) {
        const msa__json *folder;
        MSA_TRY(msa__json_need(description, "shards", &folder));
        MSA_TRY(msa__json_string(folder, &path));
        return msa__file_list_fill(shards, path, ".safetensors");
    }
    MSA_TRY(msa__json_string(text, &path));
    if (!o->cache) {
        return msa__json_fail(text, MSA_EFORMAT, "needs the key cache beside sources");
    }
    msa__file_list files = {0};
    msa_status status = msa__file_list_fill(&files, path, ".txt");
    if (status == MSA_OK) {
        status =
            msa__tokenize(shards, o->cache, &o->dataset->vocabulary, &files, o->progress, o->user);
    }
    msa__file_list_free(&files);
    return status;
}

static msa_status refuse_unknown(const msa__json *object, const char *const *known)
{
    MSA__JSON_EACH(member, object)
    {
        const char *const *k = known;
        while (*k && strcmp(*k, member->key) != 0) k++;
        if (!*k) return msa__json_fail(member, MSA_EUNSUPPORTED, "is not a key of this object");
    }
    return MSA_OK;
}

static msa_status open_source(const opener *o, const msa__json *description, source *s)
{
    static const char *const known[] = {"text", "shards", "weight", NULL};
    MSA_TRY(msa__json_type_is(description, MSA__JSON_OBJECT));
    MSA_TRY(refuse_unknown(description, known));
    const msa__json *weight = msa__json_get(description, "weight");
    s->weight = 1;
    if (weight) MSA_TRY(msa__json_double(weight, &s->weight));
    if (!(s->weight >= 1e-6 && s->weight <= 1e6)) {
        return msa__json_fail(weight, MSA_EFORMAT, "must be a number from 1e-6 to 1e6");
    }
    msa__file_list shards = {0};
    msa_status status = list_shards(o, description, &shards);
    if (status == MSA_OK) {
        status = msa__token_source_open(&s->tokens, &shards, &o->dataset->vocabulary);
    }
    msa__file_list_free(&shards);
    return status;
}

/* Shares of the chain of choices, and a key for each source. */
static void finish_sources(const opener *o)
{
    msa__dataset *d = o->dataset;
    double rest = 0; /* weight of this source and those behind it */
    d->fingerprint = msa__checksum(d->vocabulary.fingerprint, &o->seed, sizeof(o->seed));
    for (int32_t i = d->n_sources - 1; i >= 0; i--) {
        source *s = &d->sources[i];
        uint32_t words[4];
        msa__philox(o->seed, (uint64_t)i, 0, words);
        s->key = (uint64_t)words[1] << 32 | words[0];
        rest += s->weight;
        double share = s->weight / rest * (1 << SHARE_BITS);
        s->share = share < 1 ? 1 : (uint64_t)share;
        d->fingerprint = msa__checksum(d->fingerprint, &s->share, sizeof(s->share));
        for (int64_t k = 0; k < s->tokens.n_shards; k++) {
            int64_t text = s->tokens.shards[k].text;
            d->fingerprint = msa__checksum(d->fingerprint, &text, sizeof(text));
        }
    }
}

static msa_status open_dataset(opener *o, const msa__json *description)
{
    static const char *const known[] = {"tokenizer", "cache", "sources", NULL};
    msa__dataset *d = o->dataset;
    const msa__json *tokenizer, *sources, *cache = msa__json_get(description, "cache");
    const char *dir;
    MSA_TRY(msa__json_type_is(description, MSA__JSON_OBJECT));
    MSA_TRY(refuse_unknown(description, known));
    MSA_TRY(msa__json_need(description, "tokenizer", &tokenizer));
    MSA_TRY(msa__json_string(tokenizer, &dir));
    if (cache) MSA_TRY(msa__json_string(cache, &o->cache));
    MSA_TRY(need_typed(description, "sources", MSA__JSON_ARRAY, &sources));
    if (sources->n_children == 0) {
        return msa__json_fail(sources, MSA_EFORMAT, "must hold at least one source");
    }
    MSA_TRY(msa__vocabulary_open(&d->vocabulary, dir));
    d->sources = calloc((size_t)sources->n_children, sizeof(*d->sources));
    if (!d->sources) return MSA_FAIL(MSA_ENOMEM, "dataset: no memory for its sources");
    MSA__JSON_EACH(item, sources) MSA_TRY(open_source(o, item, &d->sources[d->n_sources++]));
    finish_sources(o);
    return MSA_OK;
}

msa_status msa__dataset_open(msa__dataset **out, const msa__json *description, const char *cache,
                             uint64_t seed, msa_progress_fn progress, void *user)
{
    *out = NULL;
    msa__dataset *d = calloc(1, sizeof(*d));
    if (!d) return MSA_FAIL(MSA_ENOMEM, "dataset: no memory");
    opener o = {d, cache, seed, progress, user};
    msa_status status = open_dataset(&o, description);
    if (status == MSA_OK)
        *out = d;
    else
        msa__dataset_close(d);
    return status;
}

void msa__dataset_close(msa__dataset *dataset)
{
    if (!dataset) return;
    for (int32_t i = 0; i < dataset->n_sources; i++) {
        msa__token_source_close(&dataset->sources[i].tokens);
    }
    msa__vocabulary_close(&dataset->vocabulary);
    free(dataset->sources);
    free(dataset);
}

/* ---- batches ------------------------------------------------------------------------------ */

/* The source of row *row; *row becomes its number among the rows of that source. */
static const source *choose_source(const msa__dataset *dataset, uint64_t *row)
{
    const source *s = dataset->sources;
    for (;; s++) {
        uint64_t before = *row * s->share >> SHARE_BITS;
        uint64_t after = (*row + 1) * s->share >> SHARE_BITS;
        if (after > before) {
            *row = before;
            return s;
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
        const source *s = choose_source(dataset, &row);
        msa__token_source_row(&s->tokens, s->key, row, length, out);
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
