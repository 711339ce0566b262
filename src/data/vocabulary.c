/* A tokenizer for training; see vocabulary.h. */
#include "data/vocabulary.h"

#include "base/alloc.h"
#include "base/error.h"
#include "model/checksum.h"
#include "model/files.h"
#include "model/json_optional.h"

#include <string.h>

#define MAX_FILE_BYTES ((size_t)256 << 20)

/* "eos_token" is a string, or an object whose "content" is one. */
static msa_status find_eos(msa__vocabulary *v, const msa__json *config)
{
    const msa__json *value;
    const char *text;
    MSA_TRY(msa__json_need(config, "eos_token", &value));
    if (value->type == MSA__JSON_OBJECT) MSA_TRY(msa__json_need(value, "content", &value));
    MSA_TRY(msa__json_string(value, &text));
    v->eos = msa_tokenizer_find(v->tokenizer, text);
    if (v->eos < 0) return msa__json_fail(value, MSA_EFORMAT, "must be in tokenizer.json");
    return MSA_OK;
}

static msa_status fingerprint_file(msa__vocabulary *v, const char *dir)
{
    char path[1024], *text;
    size_t bytes;
    MSA_TRY(msa__path_join(path, sizeof(path), dir, "tokenizer.json"));
    MSA_TRY(msa__file_read(path, MAX_FILE_BYTES, &msa__default_allocator, &text, &bytes));
    v->fingerprint = msa__checksum(MSA__CHECKSUM_START, text, bytes);
    v->fingerprint = msa__checksum(v->fingerprint, &v->eos, sizeof(v->eos));
    msa_free(text);
    return MSA_OK;
}

static msa_status open_vocabulary(msa__vocabulary *v, const char *dir)
{
    const msa__json *config;
    MSA_TRY(msa_tokenizer_open(&v->tokenizer, dir));
    MSA_TRY(msa__json_read(&config, NULL, dir, "tokenizer_config.json", MAX_FILE_BYTES));
    msa_status status = find_eos(v, config);
    msa__json_free(config);
    return status == MSA_OK ? fingerprint_file(v, dir) : status;
}

msa_status msa__vocabulary_open(msa__vocabulary *out, const char *dir)
{
    memset(out, 0, sizeof(*out));
    msa_status status = open_vocabulary(out, dir);
    if (status != MSA_OK) msa__vocabulary_close(out);
    return status;
}

void msa__vocabulary_close(msa__vocabulary *vocabulary)
{
    msa_tokenizer_close(vocabulary->tokenizer);
    vocabulary->tokenizer = NULL;
}
