/* Weight files; see weight_files.h. Tensors fill a shard in the order they were declared, until the
 * next one would make it too large. One shard is open at a time. */
#include "model/weight_files.h"

#include "base/error.h"
#include "model/buffers.h"
#include "model/files.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SHARD_BYTES ((int64_t)512 << 20)

typedef struct declared_tensor {
    char name[176];
    msa_dtype dtype;
    int32_t n_dims;
    int64_t shape[MSA_MAX_DIMS];
    int32_t shard;
    int64_t index; /* in the shard's writer */
} declared_tensor;

struct msa__weight_files {
    char dir[1024];
    declared_tensor *tensors;
    int64_t n_tensors, capacity;
    int32_t n_shards;
    int64_t last_shard_bytes, total_bytes;
    msa_safetensors_writer *writer;
    int32_t open_shard; /* -1: none yet */
};

msa_status msa__weight_files_create(msa__weight_files **out, const char *dir)
{
    *out = NULL;
    if (strlen(dir) >= sizeof((*out)->dir)) {
        return MSA_FAIL(MSA_EINVAL, "path: %.300s, too long", dir);
    }
    msa__weight_files *files = calloc(1, sizeof(*files));
    if (!files) return MSA_FAIL(MSA_ENOMEM, "weight files: no memory for the list of tensors");
    strcpy(files->dir, dir);
    files->open_shard = -1;
    *out = files;
    return MSA_OK;
}

void msa__weight_files_destroy(msa__weight_files *files)
{
    if (!files) return;
    msa_safetensors_writer_destroy(files->writer);
    free(files->tensors);
    free(files);
}

int64_t msa__weight_files_bytes(const msa__weight_files *files)
{
    return files->total_bytes;
}

msa_status msa__weight_files_declare(msa__weight_files *files, const char *name, msa_dtype dtype,
                                     int32_t n_dims, const int64_t *shape, int64_t *index)
{
    if (files->n_tensors == files->capacity) {
        int64_t capacity = files->capacity ? 2 * files->capacity : 256;
        declared_tensor *grown = realloc(files->tensors, (size_t)capacity * sizeof(*grown));
        if (!grown) return MSA_FAIL(MSA_ENOMEM, "weight files: no memory for the list of tensors");
        files->tensors = grown;
        files->capacity = capacity;
    }
    declared_tensor *t = &files->tensors[files->n_tensors];
    memset(t, 0, sizeof(*t));
    if (strlen(name) >= sizeof(t->name)) {
        return MSA_FAIL(MSA_EINVAL, "weight files: %.100s, name too long", name);
    }
    strcpy(t->name, name);
    t->dtype = dtype;
    t->n_dims = n_dims;
    int64_t bytes = (int64_t)msa_dtype_bytes(dtype);
    for (int32_t i = 0; i < n_dims; i++) {
        t->shape[i] = shape[i];
        bytes *= shape[i];
    }
    if (files->n_shards == 0 || files->last_shard_bytes + bytes > SHARD_BYTES) {
        files->n_shards++;
        files->last_shard_bytes = 0;
    }
    t->shard = files->n_shards - 1;
    files->last_shard_bytes += bytes;
    files->total_bytes += bytes;
    *index = files->n_tensors++;
    return MSA_OK;
}

/* ---- files -------------------------------------------------------------------------------- */

static void shard_name(const msa__weight_files *files, int32_t shard, char *name, size_t bytes)
{
    if (files->n_shards == 1) {
        (void)snprintf(name, bytes, "model.safetensors");
    } else {
        (void)snprintf(name, bytes, "model-%05d-of-%05d.safetensors", shard + 1, files->n_shards);
    }
}

static msa_status finish_shard(msa__weight_files *files)
{
    if (!files->writer) return MSA_OK;
    msa_status status = msa_safetensors_writer_finish(files->writer);
    msa_safetensors_writer_destroy(files->writer);
    files->writer = NULL;
    return status;
}

static msa_status begin_shard(msa__weight_files *files, int32_t shard)
{
    char name[64], path[1100];
    shard_name(files, shard, name, sizeof(name));
    MSA_TRY(finish_shard(files));
    MSA_TRY(msa__path_join(path, sizeof(path), files->dir, name));
    MSA_TRY(msa_safetensors_writer_create(&files->writer, path));
    files->open_shard = shard;
    for (int64_t i = 0; i < files->n_tensors; i++) {
        declared_tensor *t = &files->tensors[i];
        if (t->shard != shard) continue;
        MSA_TRY(msa_safetensors_writer_declare(files->writer, t->name, t->dtype, t->n_dims,
                                               t->shape, &t->index));
    }
    return MSA_OK;
}

msa_status msa__weight_files_write(msa__weight_files *files, int64_t index, int64_t offset,
                                   const void *data, size_t bytes)
{
    const declared_tensor *t = &files->tensors[index];
    if (t->shard != files->open_shard) MSA_TRY(begin_shard(files, t->shard));
    return msa_safetensors_writer_write(files->writer, t->index, offset, data, bytes);
}

static void add_index(const msa__weight_files *files, msa__text *text)
{
    char line[320], shard[64];
    (void)snprintf(line, sizeof(line),
                   "{\n  \"metadata\": {\"total_size\": %lld},\n  \"weight_map\": {\n",
                   (long long)files->total_bytes);
    msa__text_puts(text, line);
    for (int64_t i = 0; i < files->n_tensors; i++) {
        const declared_tensor *t = &files->tensors[i];
        shard_name(files, t->shard, shard, sizeof(shard));
        (void)snprintf(line, sizeof(line), "%s    \"%s\": \"%s\"", i ? ",\n" : "", t->name, shard);
        msa__text_puts(text, line);
    }
    msa__text_puts(text, "\n  }\n}\n");
}

msa_status msa__weight_files_finish(msa__weight_files *files)
{
    char path[1100];
    msa__text text = {0};
    MSA_TRY(finish_shard(files));
    if (files->n_shards <= 1) return MSA_OK;
    MSA_TRY(msa__path_join(path, sizeof(path), files->dir, "model.safetensors.index.json"));
    add_index(files, &text);
    msa_status status = text.status;
    if (status == MSA_OK) status = msa__file_write(path, text.bytes, text.n);
    msa__text_free(&text);
    return status;
}
