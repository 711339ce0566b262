/* Sources of a dataset; see source.h. */
#include "data/source.h"

#include "base/error.h"
#include "data/tokenize.h"
#include "model/checksum.h"
#include "model/json_optional.h"

#include <string.h>

msa_status msa__refuse_unknown(const msa__json *object, const char *const *known)
{
    MSA__JSON_EACH(member, object)
    {
        const char *const *k = known;
        while (*k && strcmp(*k, member->key) != 0) k++;
        if (!*k) return msa__json_fail(member, MSA_EUNSUPPORTED, "is not a key of this object");
    }
    return MSA_OK;
}

/* The shards of a text: made, unless the cache holds them. */
static msa_status tokenize(const msa__json *text, const msa__source_context *context,
                           msa__file_list *shards)
{
    const char *path;
    MSA_TRY(msa__json_string(text, &path));
    if (!context->cache) {
        return msa__json_fail(text, MSA_EFORMAT, "needs the key cache beside sources");
    }
    msa__file_list files = {0};
    msa_status status = msa__file_list_fill(&files, path, ".txt");
    if (status == MSA_OK) {
        status = msa__tokenize(shards, context->cache, context->vocabulary, &files,
                               context->progress, context->user);
    }
    msa__file_list_free(&files);
    return status;
}

static msa_status open_tokens(msa__source *source, const msa__json *description,
                              const msa__source_context *context)
{
    const msa__json *text = msa__json_get(description, "text");
    const msa__json *folder = msa__json_get(description, "shards");
    const char *path;
    msa__file_list shards = {0};
    msa_status status;
    if (text) {
        status = tokenize(text, context, &shards);
    } else {
        MSA_TRY(msa__json_string(folder, &path));
        status = msa__file_list_fill(&shards, path, ".safetensors");
    }
    if (status == MSA_OK) {
        status = msa__token_source_open(&source->tokens, &shards, context->vocabulary);
    }
    msa__file_list_free(&shards);
    MSA_TRY(status);
    source->fingerprint = MSA__CHECKSUM_START;
    for (int64_t i = 0; i < source->tokens.n_shards; i++) {
        int64_t sum = source->tokens.shards[i].text;
        source->fingerprint = msa__checksum(source->fingerprint, &sum, sizeof(sum));
    }
    source->is_copies = msa__json_get(description, "copies") != NULL;
    if (!source->is_copies) return MSA_OK;
    return msa__copy_source_open(&source->copies, description, &source->fingerprint);
}

static msa_status open_tasks(msa__source *source, const msa__json *description,
                             const msa__source_context *context)
{
    source->is_tasks = 1;
    MSA_TRY(msa__task_source_open(&source->tasks, description, context->vocabulary));
    source->fingerprint = source->tasks.fingerprint;
    return MSA_OK;
}

msa_status msa__source_open(msa__source *source, const msa__json *description,
                            const msa__source_context *context)
{
    static const char *const text_keys[] = {"text", "copies", "shuffled", "weight", NULL};
    static const char *const shard_keys[] = {"shards", "copies", "shuffled", "weight", NULL};
    static const char *const task_keys[] = {"tasks", "lengths", "haystack", "loss", "weight", NULL};
    MSA_TRY(msa__json_type_is(description, MSA__JSON_OBJECT));
    const msa__json *weight = msa__json_get(description, "weight");
    source->weight = 1;
    if (weight) MSA_TRY(msa__json_double(weight, &source->weight));
    if (!(source->weight >= 1e-6 && source->weight <= 1e6)) {
        return msa__json_fail(weight, MSA_EFORMAT, "must be a number from 1e-6 to 1e6");
    }
    int32_t is_text = msa__json_get(description, "text") != NULL;
    int32_t is_shards = msa__json_get(description, "shards") != NULL;
    if (!is_text && !is_shards && !msa__json_get(description, "tasks")) {
        return msa__json_fail(description, MSA_EFORMAT, "must have a key text, shards or tasks");
    }
    MSA_TRY(msa__refuse_unknown(description, is_text     ? text_keys
                                             : is_shards ? shard_keys
                                                         : task_keys));
    return is_text || is_shards ? open_tokens(source, description, context)
                                : open_tasks(source, description, context);
}

void msa__source_close(msa__source *source)
{
    msa__token_source_close(&source->tokens);
    msa__copy_source_close(&source->copies);
    msa__task_source_close(&source->tasks);
}

msa_status msa__source_row(const msa__source *source, const msa__vocabulary *vocabulary,
                           uint64_t row, int64_t length, msa__batch *out)
{
    if (source->is_tasks) {
        return msa__task_source_row(&source->tasks, vocabulary, source->key, row, length, out);
    }
    if (source->is_copies) {
        return msa__copy_source_row(&source->copies, &source->tokens, vocabulary->eos, source->key,
                                    row, length, out);
    }
    msa__token_source_row(&source->tokens, source->key, row, length, out);
    return MSA_OK;
}
