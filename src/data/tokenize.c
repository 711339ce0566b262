/* Text files to token shards; see tokenize.h. */
#define _POSIX_C_SOURCE 200809L
#include "data/tokenize.h"

#include "base/error.h"
#include "data/shard.h"
#include "model/checksum.h"
#include "model/files.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define SHARD_TEXT_BYTES ((size_t)32 << 20)

/* Mapped, not read: a text is looked at twice, for its checksum and for its tokens. */
typedef struct text {
    const void *data;
    size_t bytes;
} text;

typedef struct job {
    const msa__vocabulary *vocabulary;
    const msa__file_list *files;
    msa_progress_fn progress;
    void *user;
    int64_t bytes_done, bytes_total;
    msa__ids tokens; /* of the shard at work */
    int64_t *starts;
} job;

/* Files first..*end make one shard; *sum is the checksum of their texts and of the tokenizer. */
static msa_status plan_shard(const job *j, int64_t first, int64_t *end, uint64_t *sum)
{
    size_t bytes = 0;
    *sum = j->vocabulary->fingerprint;
    for (*end = first; *end < j->files->n && bytes < SHARD_TEXT_BYTES; (*end)++) {
        text t;
        MSA_TRY(msa__file_map(j->files->paths[*end], &t.data, &t.bytes));
        *sum = msa__checksum(*sum, t.data, t.bytes);
        bytes += t.bytes;
        msa__file_unmap(t.data, t.bytes);
    }
    return MSA_OK;
}

static void report(job *j, size_t bytes)
{
    j->bytes_done += (int64_t)bytes;
    if (j->progress) j->progress(j->user, j->bytes_done, j->bytes_total);
}

static msa_status add_document(job *j, const char *path)
{
    text t;
    int32_t *ids;
    size_t n_ids;
    MSA_TRY(msa__file_map(path, &t.data, &t.bytes));
    msa_status status =
        msa_tokenizer_encode(j->vocabulary->tokenizer, t.data, t.bytes, &ids, &n_ids);
    msa__file_unmap(t.data, t.bytes);
    if (status != MSA_OK) return msa__in_file(path, status);
    if (n_ids > 0) {
        status = msa__ids_add(&j->tokens, ids, n_ids);
        if (status == MSA_OK) status = msa__ids_add(&j->tokens, &j->vocabulary->eos, 1);
        msa_free(ids);
    }
    report(j, t.bytes);
    return status;
}

static msa_status make_shard(job *j, int64_t first, int64_t end, uint64_t sum, const char *path)
{
    int64_t n_documents = 0;
    j->tokens.n = 0;
    for (int64_t i = first; i < end; i++) {
        size_t before = j->tokens.n;
        MSA_TRY(add_document(j, j->files->paths[i]));
        if (j->tokens.n > before) j->starts[++n_documents] = (int64_t)j->tokens.n;
    }
    if (n_documents == 0) return MSA_OK; /* empty files only */
    return msa__shard_write(path, j->vocabulary, sum, &j->tokens, j->starts, n_documents);
}

static msa_status make_shards(job *j, msa__file_list *shards, const char *dir)
{
    int64_t end;
    for (int64_t first = 0, number = 0; first < j->files->n; first = end, number++) {
        uint64_t sum;
        char name[64], path[1024];
        MSA_TRY(plan_shard(j, first, &end, &sum));
        snprintf(name, sizeof(name), "tokens-%05lld-%016llx.safetensors", (long long)number,
                 (unsigned long long)sum);
        MSA_TRY(msa__path_join(path, sizeof(path), dir, name));
        if (msa__file_exists(path)) {
            report(j, (size_t)msa__file_list_bytes(j->files, first, end));
        } else {
            MSA_TRY(make_shard(j, first, end, sum, path));
        }
        if (msa__file_exists(path)) MSA_TRY(msa__file_list_add(shards, path));
    }
    if (shards->n == 0) return MSA_FAIL(MSA_EFORMAT, "%.300s: no text", j->files->paths[0]);
    return MSA_OK;
}

msa_status msa__tokenize(msa__file_list *shards, const char *dir, const msa__vocabulary *vocabulary,
                         const msa__file_list *files, msa_progress_fn progress, void *user)
{
    if (mkdir(dir, 0777) != 0 && errno != EEXIST) {
        return MSA_FAIL(MSA_EIO, "%.300s: %s", dir, strerror(errno));
    }
    job j = {.vocabulary = vocabulary, .files = files, .progress = progress, .user = user};
    j.bytes_total = msa__file_list_bytes(files, 0, files->n);
    j.starts = calloc((size_t)files->n + 1, sizeof(*j.starts));
    if (!j.starts) return MSA_FAIL(MSA_ENOMEM, "%.300s: no memory to tokenize", dir);
    msa_status status = make_shards(&j, shards, dir);
    free(j.starts);
    msa_free(j.tokens.ids);
    return status;
}
