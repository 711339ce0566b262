/* Text to a folder of token shards, for later training; see msa/data.h. */
#include "msa/data.h"

#include "base/error.h"
#include "data/shard.h"
#include "data/tokenize.h"

#include <string.h>

/* A folder of shards is read as a whole: one of another text would slip in. */
static msa_status refuse_others(const char *dir, const msa__file_list *shards)
{
    msa__file_list all = {0};
    msa_status status = msa__file_list_fill(&all, dir, ".safetensors");
    for (int64_t i = 0, k = 0; i < all.n && status == MSA_OK; i++) {
        while (k < shards->n && strcmp(shards->paths[k], all.paths[i]) < 0) k++;
        if (k < shards->n && !strcmp(shards->paths[k], all.paths[i])) continue;
        status = MSA_FAIL(MSA_EFORMAT, "%.300s: a shard of other text, must not be beside these",
                          all.paths[i]);
    }
    msa__file_list_free(&all);
    return status;
}

static msa_status survey(const msa__file_list *shards, const msa__vocabulary *vocabulary,
                         msa_shards_info *info)
{
    info->n_shards = shards->n;
    info->n_documents = info->n_tokens = 0;
    for (int64_t i = 0; i < shards->n; i++) {
        msa__shard shard;
        MSA_TRY(msa__shard_open(&shard, shards->paths[i], vocabulary));
        info->n_documents += shard.n_documents;
        info->n_tokens += shard.n_tokens;
        msa__shard_close(&shard);
    }
    return MSA_OK;
}

msa_status msa_shards_make(const char *dir, const char *model, const char *text,
                           msa_progress_fn progress, void *user, msa_shards_info *info)
{
    if (!dir || !model || !text) {
        return MSA_FAIL(MSA_EINVAL, "shards_make: %s = NULL, must be given",
                        !dir     ? "dir"
                        : !model ? "model"
                                 : "text");
    }
    if (info && info->struct_size < sizeof(*info)) {
        return MSA_FAIL(MSA_EINVAL,
                        "shards_make: struct_size = %u, must be set by its init function",
                        info->struct_size);
    }
    msa__vocabulary vocabulary;
    msa__file_list files = {0}, shards = {0};
    MSA_TRY(msa__vocabulary_open(&vocabulary, model));
    msa_status status = msa__file_list_fill(&files, text, ".txt");
    if (status == MSA_OK) {
        status = msa__tokenize(&shards, dir, &vocabulary, &files, progress, user);
    }
    if (status == MSA_OK) status = refuse_others(dir, &shards);
    if (status == MSA_OK && info) {
        info->text_bytes = msa__file_list_bytes(&files, 0, files.n);
        status = survey(&shards, &vocabulary, info);
    }
    msa__file_list_free(&shards);
    msa__file_list_free(&files);
    msa__vocabulary_close(&vocabulary);
    return status;
}
