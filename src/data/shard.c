/* Token shards, read and written; see shard.h. */
#include "data/shard.h"

#include "base/error.h"
#include "model/safetensors.h"

#include <string.h>

#define FORMAT_VERSION 1

enum { ABOUT_VERSION, ABOUT_TOKENIZER, ABOUT_TEXT, ABOUT_VOCAB, ABOUT_VALUES };

/* A tensor of one dimension; its data may not be absent. */
static msa_status find_array(const msa_safetensors *file, const char *name, msa_dtype dtype,
                             int64_t least, msa_tensor *out)
{
    const char *path = msa__safetensors_path(file);
    int64_t i = msa_safetensors_find(file, name);
    if (i < 0) return MSA_FAIL(MSA_EFORMAT, "%.300s: must hold a tensor %s", path, name);
    MSA_TRY(msa_safetensors_get(file, i, out));
    if (out->dtype != dtype || out->n_dims != 1 || out->shape[0] < least) {
        return MSA_FAIL(MSA_EFORMAT, "%.300s: %s must be %s with one dimension of at least %lld",
                        path, name, msa_dtype_name(dtype), (long long)least);
    }
    return MSA_OK;
}

static msa_status check_about(msa__shard *s, const char *path)
{
    msa_tensor about;
    MSA_TRY(find_array(s->file, "about", MSA_DTYPE_I64, ABOUT_VALUES, &about));
    const int64_t *values = about.data;
    if (values[ABOUT_VERSION] != FORMAT_VERSION) {
        return MSA_FAIL(MSA_EVERSION, "%.300s: shard format %lld, must be %d", path,
                        (long long)values[ABOUT_VERSION], FORMAT_VERSION);
    }
    if (values[ABOUT_VOCAB] < 1 || values[ABOUT_VOCAB] > INT32_MAX) {
        return MSA_FAIL(MSA_EFORMAT, "%.300s: vocabulary of %lld, must be in 1..%d", path,
                        (long long)values[ABOUT_VOCAB], INT32_MAX);
    }
    s->tokenizer = values[ABOUT_TOKENIZER];
    s->text = values[ABOUT_TEXT];
    s->vocab = (int32_t)values[ABOUT_VOCAB];
    return MSA_OK;
}

static msa_status check_arrays(msa__shard *s)
{
    const char *path = msa__safetensors_path(s->file);
    msa_tensor starts, tokens;
    MSA_TRY(check_about(s, path));
    MSA_TRY(find_array(s->file, "starts", MSA_DTYPE_I64, 2, &starts));
    MSA_TRY(find_array(s->file, "tokens", MSA_DTYPE_I32, 1, &tokens));
    s->starts = starts.data;
    s->tokens = tokens.data;
    s->n_documents = starts.shape[0] - 1;
    s->n_tokens = tokens.shape[0];
    for (int64_t i = 0; i < s->n_documents; i++) {
        if (s->starts[i] < s->starts[i + 1]) continue;
        return MSA_FAIL(MSA_EFORMAT, "%.300s: starts[%lld] = %lld, must be above starts[%lld]",
                        path, (long long)i + 1, (long long)s->starts[i + 1], (long long)i);
    }
    if (s->starts[0] != 0 || s->starts[s->n_documents] != s->n_tokens) {
        return MSA_FAIL(MSA_EFORMAT, "%.300s: starts = %lld..%lld, must be 0..%lld", path,
                        (long long)s->starts[0], (long long)s->starts[s->n_documents],
                        (long long)s->n_tokens);
    }
    for (int64_t i = 0; i < s->n_tokens; i++) {
        if ((uint32_t)s->tokens[i] < (uint32_t)s->vocab) continue;
        return MSA_FAIL(MSA_EFORMAT, "%.300s: tokens[%lld] = %d, must be in 0..%d", path,
                        (long long)i, s->tokens[i], s->vocab - 1);
    }
    return MSA_OK;
}

msa_status msa__shard_check(msa__shard *out, msa_safetensors *file)
{
    memset(out, 0, sizeof(*out));
    out->file = file;
    msa_status status = check_arrays(out);
    if (status != MSA_OK) msa__shard_close(out);
    return status;
}

msa_status msa__shard_open(msa__shard *out, const char *path, const msa__vocabulary *vocabulary)
{
    msa_safetensors *file;
    memset(out, 0, sizeof(*out));
    MSA_TRY(msa_safetensors_open(&file, path));
    MSA_TRY(msa__shard_check(out, file));
    if ((uint64_t)out->tokenizer == vocabulary->fingerprint) return MSA_OK;
    msa__shard_close(out);
    return MSA_FAIL(MSA_EFORMAT, "%.300s: made with another tokenizer", path);
}

void msa__shard_close(msa__shard *shard)
{
    msa_safetensors_close(shard->file);
    memset(shard, 0, sizeof(*shard));
}

/* ---- write -------------------------------------------------------------------------------- */

typedef struct array {
    const char *name;
    msa_dtype dtype;
    int64_t n;
    const void *data;
} array;

static msa_status write_arrays(msa_safetensors_writer *writer, const array *arrays, int32_t n)
{
    for (int32_t i = 0; i < n; i++) {
        int64_t index;
        MSA_TRY(msa_safetensors_writer_declare(writer, arrays[i].name, arrays[i].dtype, 1,
                                               &arrays[i].n, &index));
    }
    for (int32_t i = 0; i < n; i++) {
        size_t bytes = (size_t)arrays[i].n * msa_dtype_bytes(arrays[i].dtype);
        MSA_TRY(msa_safetensors_writer_write(writer, i, 0, arrays[i].data, bytes));
    }
    return msa_safetensors_writer_finish(writer);
}

msa_status msa__shard_write(const char *path, const msa__vocabulary *vocabulary, uint64_t text,
                            const msa__ids *tokens, const int64_t *starts, int64_t n_documents)
{
    int64_t about[ABOUT_VALUES] = {FORMAT_VERSION, (int64_t)vocabulary->fingerprint, (int64_t)text,
                                   msa_tokenizer_size(vocabulary->tokenizer)};
    array arrays[] = {{"about", MSA_DTYPE_I64, ABOUT_VALUES, about},
                      {"starts", MSA_DTYPE_I64, n_documents + 1, starts},
                      {"tokens", MSA_DTYPE_I32, (int64_t)tokens->n, tokens->ids}};
    msa_safetensors_writer *writer;
    MSA_TRY(msa_safetensors_writer_create(&writer, path));
    msa_status status = write_arrays(writer, arrays, 3);
    msa_safetensors_writer_destroy(writer);
    return status;
}
