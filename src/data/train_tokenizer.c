/* Training a tokenizer: count the pieces of all files, learn the merges, write the files. */
#define _POSIX_C_SOURCE 200809L
#include "msa/data.h"

#include "base/error.h"
#include "data/bpe_train.h"
#include "data/file_list.h"
#include "data/vocabulary.h"
#include "model/files.h"
#include "model/tokenizer.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

static msa_status count_file(msa__pieces *pieces, const msa__pattern *pattern,
                             msa__matcher *matcher, const char *path, int64_t *bytes_done)
{
    const void *data;
    size_t bytes;
    MSA_TRY(msa__file_map(path, &data, &bytes));
    msa_status status = bytes ? msa__pieces_add(pieces, pattern, matcher, data, bytes) : MSA_OK;
    msa__file_unmap(data, bytes);
    *bytes_done += (int64_t)bytes;
    return status == MSA_OK ? MSA_OK : msa__in_file(path, status);
}

static msa_status count_files(msa__pieces *pieces, const msa__file_list *files,
                              msa_progress_fn progress, void *user)
{
    msa__pattern *pattern = NULL;
    msa__matcher *matcher = NULL;
    int64_t done = 0, total = msa__file_list_bytes(files, 0, files->n);
    msa_status status = msa__pattern_create(&pattern, msa__m3_pattern, strlen(msa__m3_pattern), 0);
    if (status == MSA_OK) status = msa__matcher_create(&matcher);
    for (int64_t i = 0; i < files->n && status == MSA_OK; i++) {
        status = count_file(pieces, pattern, matcher, files->paths[i], &done);
        if (progress) progress(user, done, total);
    }
    msa__matcher_destroy(matcher);
    msa__pattern_destroy(pattern);
    return status;
}

static msa_status write_text(const char *dir, const char *name, msa__text *text)
{
    char path[1024];
    msa_status status = text->status;
    if (status == MSA_OK) status = msa__path_join(path, sizeof(path), dir, name);
    if (status == MSA_OK) status = msa__file_write(path, text->bytes, text->n);
    msa__text_free(text);
    return status;
}

/* Models that are trained with it stop where documents end. */
static msa_status write_generation_config(const char *dir)
{
    msa__vocabulary written = {0};
    msa__text text = {0};
    MSA_TRY(msa__vocabulary_open(&written, dir));
    char line[64];
    snprintf(line, sizeof(line), "{\n  \"eos_token_id\": %d\n}\n", written.eos);
    msa__vocabulary_close(&written);
    msa__text_puts(&text, line);
    return write_text(dir, "generation_config.json", &text);
}

static msa_status write_files(const char *dir, const msa__learned *learned, msa__added added)
{
    if (mkdir(dir, 0777) != 0 && errno != EEXIST) {
        return MSA_FAIL(MSA_EIO, "train_tokenizer: %.300s: %s", dir, strerror(errno));
    }
    msa__text tokenizer = {0}, config = {0};
    msa__tokenizer_parts parts = {learned->tokens, learned->merges, learned->n_tokens,
                                  learned->n_merges, added};
    msa__write_tokenizer(&tokenizer, &parts);
    MSA_TRY(write_text(dir, "tokenizer.json", &tokenizer));
    msa__write_tokenizer_config(&config);
    MSA_TRY(write_text(dir, "tokenizer_config.json", &config));
    return write_generation_config(dir);
}

msa_status msa_tokenizer_train(const char *dir, const char *text, int32_t vocab_size, int32_t added,
                               int32_t one_digit, msa_progress_fn progress, void *user)
{
    if (!dir || !text) {
        return MSA_FAIL(MSA_EINVAL, "train_tokenizer: %s = NULL, must be given",
                        dir ? "text" : "dir");
    }
    if ((added != MSA_ADDED_CHAT && added != MSA_ADDED_M3) || (one_digit != 0 && one_digit != 1)) {
        return MSA_FAIL(MSA_EINVAL, "train_tokenizer: added = %d, one_digit = %d, must be 0 or 1",
                        added, one_digit);
    }
    msa__added which = added == MSA_ADDED_M3 ? MSA__ADDED_M3 : MSA__ADDED_CHAT;
    int32_t n_learned = vocab_size - msa__n_added(which);
    if (n_learned < 256 || vocab_size > MSA__MAX_TOKEN_ID) {
        return MSA_FAIL(MSA_EINVAL, "train_tokenizer: vocab_size = %d, must be in %d..%d",
                        vocab_size, 256 + msa__n_added(which), MSA__MAX_TOKEN_ID);
    }
    msa__file_list files = {0};
    msa__pieces pieces = {.no_digits = one_digit};
    msa__learned learned = {0};
    msa_status status = msa__file_list_fill(&files, text, ".txt");
    if (status == MSA_OK) status = count_files(&pieces, &files, progress, user);
    if (status == MSA_OK) status = msa__bpe_learn(&learned, &pieces, n_learned, progress, user);
    if (status == MSA_OK) status = write_files(dir, &learned, which);
    msa__learned_free(&learned);
    msa__pieces_free(&pieces);
    msa__file_list_free(&files);
    return status;
}
