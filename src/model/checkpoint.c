/* Model folders as one set of tensors; see checkpoint.h. */
#include "model/checkpoint.h"

#include "base/error.h"
#include "model/files.h"
#include "model/json.h"
#include "model/safetensors.h"

#include <string.h>

#define INDEX_FILE      "model.safetensors.index.json"
#define INDEX_MAX_BYTES ((size_t)256 << 20)
#define MAX_SHARDS      4096

static void *alloc_array(const msa__checkpoint *c, size_t count, size_t size)
{
    void *array = c->allocator.alloc(c->allocator.user, count * size, 64);
    if (array) memset(array, 0, count * size);
    return array;
}

static msa_status create(msa__checkpoint **out, const msa_allocator *allocator, int32_t capacity)
{
    msa__checkpoint *c = allocator->alloc(allocator->user, sizeof(*c), 64);
    if (!c) return MSA_FAIL(MSA_ENOMEM, "checkpoint: no memory for the list of files");
    memset(c, 0, sizeof(*c));
    c->allocator = *allocator;
    c->file_capacity = capacity;
    *out = c;
    c->files = alloc_array(c, (size_t)capacity, sizeof(*c->files));
    if (!c->files) return MSA_FAIL(MSA_ENOMEM, "checkpoint: no memory for the list of files");
    return MSA_OK;
}

void msa__checkpoint_close(msa__checkpoint *c)
{
    if (!c) return;
    msa_allocator allocator = c->allocator;
    msa__names_destroy(&c->names);
    if (c->places) {
        allocator.free(allocator.user, c->places, (size_t)c->n_tensors * sizeof(*c->places));
    }
    for (int32_t i = 0; i < c->n_files; i++) msa_safetensors_close(c->files[i]);
    if (c->files) {
        allocator.free(allocator.user, c->files, (size_t)c->file_capacity * sizeof(*c->files));
    }
    allocator.free(allocator.user, c, sizeof(*c));
}

static msa_status open_file(msa__checkpoint *c, const char *dir, const char *name)
{
    char path[1024];
    MSA_TRY(msa__path_join(path, sizeof(path), dir, name));
    MSA_TRY(msa__safetensors_open(&c->files[c->n_files], &c->allocator, path));
    c->n_files++;
    return MSA_OK;
}

/* One table over the tensors of all files. */
static msa_status index_tensors(msa__checkpoint *c)
{
    int64_t count = 0, next = 0;
    for (int32_t f = 0; f < c->n_files; f++) count += msa_safetensors_count(c->files[f]);
    MSA_TRY(msa__names_create(&c->names, &c->allocator, (size_t)count));
    c->places = alloc_array(c, (size_t)count, sizeof(*c->places));
    if (!c->places)
        return MSA_FAIL(MSA_ENOMEM, "checkpoint: no memory for %lld tensors", (long long)count);
    c->n_tensors = count;
    for (int32_t f = 0; f < c->n_files; f++) {
        for (int64_t t = 0; t < msa_safetensors_count(c->files[f]); t++, next++) {
            const char *name = msa_safetensors_name(c->files[f], t);
            int32_t existing;
            MSA_TRY(msa__names_add(&c->names, name, strlen(name), (int32_t)next, &existing));
            if (existing >= 0) {
                return MSA_FAIL(MSA_EFORMAT, "%.200s: tensor %.120s is also in another shard",
                                msa__safetensors_path(c->files[f]), name);
            }
            c->places[next].file = f;
            c->places[next].tensor = (int32_t)t;
        }
    }
    return MSA_OK;
}

/* ---- shards --------------------------------------------------------------------------------- */

/* A plain file name: nothing that could lead out of the folder. */
static msa_status check_shard_name(const msa__json *value, const char **name)
{
    MSA_TRY(msa__json_string(value, name));
    if (**name && !strchr(*name, '/') && strcmp(*name, ".") != 0 && strcmp(*name, "..") != 0) {
        return MSA_OK;
    }
    return msa__json_fail(value, MSA_EFORMAT, "must be a file name in this folder");
}

/* Open every shard the map names, once; shards gets name -> file index. */
static msa_status open_shards(msa__checkpoint *c, const char *dir, const msa__json *map,
                              msa__names *shards)
{
    MSA__JSON_EACH(item, map)
    {
        const char *name;
        int32_t existing;
        MSA_TRY(check_shard_name(item, &name));
        if (msa__names_find(shards, name, item->text_bytes) >= 0) continue;
        if (c->n_files == MAX_SHARDS) {
            return msa__json_fail(item, MSA_EFORMAT, "must be at most %d files", MAX_SHARDS);
        }
        MSA_TRY(msa__names_add(shards, name, item->text_bytes, c->n_files, &existing));
        MSA_TRY(open_file(c, dir, name));
    }
    return MSA_OK;
}

static msa_status check_map(const msa__checkpoint *c, const msa__json *map,
                            const msa__names *shards)
{
    MSA__JSON_EACH(item, map)
    {
        int32_t shard = msa__names_find(shards, item->text, item->text_bytes);
        int32_t at = msa__names_find(&c->names, item->key, item->key_bytes);
        if (at < 0 || c->places[at].file != shard) {
            return msa__json_fail(item, MSA_EFORMAT, "that file has no such tensor");
        }
    }
    return MSA_OK;
}

static msa_status open_index(msa__checkpoint *c, const char *dir, const msa__json *root)
{
    const msa__json *map;
    msa__names shards;
    MSA_TRY(msa__json_need(root, "weight_map", &map));
    MSA_TRY(msa__json_type_is(map, MSA__JSON_OBJECT));
    MSA_TRY(msa__names_create(&shards, &c->allocator, MAX_SHARDS));
    msa_status status = open_shards(c, dir, map, &shards);
    if (status == MSA_OK) status = index_tensors(c);
    if (status == MSA_OK) status = check_map(c, map, &shards);
    msa__names_destroy(&shards);
    return status;
}

/* ---- opening -------------------------------------------------------------------------------- */

static msa_status open_folder(msa__checkpoint *c, const char *dir)
{
    char path[1024];
    MSA_TRY(msa__path_join(path, sizeof(path), dir, INDEX_FILE));
    if (!msa__file_exists(path)) {
        MSA_TRY(open_file(c, dir, "model.safetensors"));
        return index_tensors(c);
    }
    const msa__json *root;
    MSA_TRY(msa__json_read(&root, &c->allocator, dir, INDEX_FILE, INDEX_MAX_BYTES));
    msa_status status = open_index(c, dir, root);
    msa__json_free(root);
    return status;
}

msa_status msa__checkpoint_open(msa__checkpoint **out, const msa_allocator *allocator,
                                const char *dir)
{
    *out = NULL;
    msa_status status = create(out, allocator, MAX_SHARDS);
    if (status == MSA_OK) status = open_folder(*out, dir);
    if (status != MSA_OK) {
        msa__checkpoint_close(*out);
        *out = NULL;
    }
    return status;
}

msa_status msa__checkpoint_get(const msa__checkpoint *c, const char *name, msa_tensor *tensor,
                               const char **path, int32_t *found)
{
    int32_t at = msa__names_find(&c->names, name, strlen(name));
    *found = at >= 0;
    if (at < 0) return MSA_OK;
    const msa_safetensors *file = c->files[c->places[at].file];
    *path = msa__safetensors_path(file);
    return msa_safetensors_get(file, c->places[at].tensor, tensor);
}
