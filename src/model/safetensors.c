/* Reader of safetensors files; see msa/safetensors.h.
 *
 * Opening checks the header against the file once; afterwards a view is arithmetic. Names stay in
 * the JSON tree of the header, which lives as long as the file.
 */
#include "model/safetensors.h"

#include "base/alloc.h"
#include "base/error.h"
#include "base/overflow.h"
#include "model/files.h"
#include "model/json.h"
#include "model/names.h"

#include <stdlib.h>
#include <string.h>

typedef struct dtype_entry {
    const char *name;
    int32_t bits;
    msa_dtype dtype; /* -1: only counted, never viewed */
} dtype_entry;

static const dtype_entry dtypes[] = {
    {"F32", 32, 0},  {"BF16", 16, 1}, {"F16", 16, 2},     {"F8_E4M3", 8, 3},  {"U8", 8, 4},
    {"I32", 32, 5},  {"I64", 64, 6},  {"F8_E8M0", 8, 4},  {"BOOL", 8, -1},    {"I8", 8, -1},
    {"I16", 16, -1}, {"U16", 16, -1}, {"U32", 32, -1},    {"U64", 64, -1},    {"F64", 64, -1},
    {"C64", 64, -1}, {"F4", 4, -1},   {"F8_E5M2", 8, -1}, {"F6_E2M3", 6, -1}, {"F6_E3M2", 6, -1},
};

typedef struct entry {
    const msa__json *member;  /* name, and the shape */
    size_t begin, end;        /* in the data */
    const dtype_entry *dtype; /* NULL: a name we do not know */
} entry;

struct msa_safetensors {
    msa_allocator allocator;
    const char *path; /* of messages; follows this struct */
    size_t struct_bytes;
    const void *map; /* NULL: borrowed memory */
    size_t map_bytes;
    const unsigned char *data;
    size_t data_bytes;
    const msa__json *header;
    entry *entries; /* by begin */
    int64_t n_entries;
    msa__names names;
};

static msa_status fail_tensor(const msa_safetensors *file, const entry *e, const char *rule)
{
    return MSA_FAIL(MSA_EFORMAT, "%.200s: tensor %.120s: %s", file->path, e->member->key, rule);
}

static const dtype_entry *find_dtype(const msa__json *name)
{
    for (size_t i = 0; i < sizeof(dtypes) / sizeof(dtypes[0]); i++) {
        if (msa__json_equals(name, dtypes[i].name)) return &dtypes[i];
    }
    return NULL;
}

/* The range must be as long as dtype x shape says. Strides must not overflow either, so the extents
 * around an extent of zero count too. */
static msa_status check_size(const msa_safetensors *file, const entry *e, const msa__json *shape)
{
    size_t product = 1;
    int32_t empty = 0;
    MSA__JSON_EACH(item, shape)
    {
        int64_t extent = 0;
        MSA_TRY(msa__json_int64(item, 0, INT64_MAX, &extent));
        if (extent == 0) empty = 1;
        if (msa__mul_overflow(product, extent ? (size_t)extent : 1, &product) ||
            product > (size_t)INT64_MAX / 64) {
            return fail_tensor(file, e, "the product of its shape overflows");
        }
    }
    if (!e->dtype) return MSA_OK;
    size_t n_bits = empty ? 0 : product * (size_t)e->dtype->bits;
    if (n_bits % 8 == 0 && n_bits / 8 == e->end - e->begin) return MSA_OK;
    return MSA_FAIL(MSA_EFORMAT,
                    "%.200s: tensor %.120s: data_offsets span %zu bytes, dtype and shape need %zu",
                    file->path, e->member->key, e->end - e->begin, (n_bits + 7) / 8);
}

static msa_status read_entry(const msa_safetensors *file, const msa__json *member, entry *e)
{
    const msa__json *dtype, *shape, *offsets;
    int64_t begin = 0, end = 0;
    MSA_TRY(msa__json_need(member, "dtype", &dtype));
    MSA_TRY(msa__json_type_is(dtype, MSA__JSON_STRING));
    MSA_TRY(msa__json_need(member, "shape", &shape));
    MSA_TRY(msa__json_type_is(shape, MSA__JSON_ARRAY));
    MSA_TRY(msa__json_need(member, "data_offsets", &offsets));
    if (offsets->type != MSA__JSON_ARRAY || offsets->n_children != 2) {
        return msa__json_fail(offsets, MSA_EFORMAT, "must be [begin, end]");
    }
    MSA_TRY(msa__json_int64(offsets->child, 0, INT64_MAX, &begin));
    MSA_TRY(msa__json_int64(offsets->child->next, begin, INT64_MAX, &end));
    e->member = member;
    e->begin = (size_t)begin;
    e->end = (size_t)end;
    e->dtype = find_dtype(dtype);
    if (e->end > file->data_bytes) {
        return MSA_FAIL(MSA_EFORMAT,
                        "%.200s: tensor %.120s: data ends at %zu, the file has %zu bytes of data",
                        file->path, member->key, e->end, file->data_bytes);
    }
    return check_size(file, e, shape);
}

static int compare_entries(const void *left, const void *right)
{
    const entry *a = left, *b = right;
    if (a->begin != b->begin) return a->begin < b->begin ? -1 : 1;
    if (a->end != b->end) return a->end < b->end ? -1 : 1;
    return a->member < b->member ? -1 : a->member > b->member; /* header order */
}

/* In the order of the data every tensor must begin where the one before ended. */
static msa_status check_coverage(msa_safetensors *file)
{
    size_t end = 0;
    if (file->n_entries > 1) {
        qsort(file->entries, (size_t)file->n_entries, sizeof(entry), compare_entries);
    }
    for (int64_t i = 0; i < file->n_entries; i++) {
        const entry *e = &file->entries[i];
        if (e->begin < end) return fail_tensor(file, e, "overlaps another tensor");
        if (e->begin > end) return fail_tensor(file, e, "data before it belongs to no tensor");
        end = e->end;
    }
    if (end == file->data_bytes) return MSA_OK;
    return MSA_FAIL(MSA_EFORMAT, "%.200s: %zu bytes of data, its tensors cover %zu", file->path,
                    file->data_bytes, end);
}

static msa_status read_entries(msa_safetensors *file)
{
    MSA_TRY(msa__json_type_is(file->header, MSA__JSON_OBJECT));
    size_t count = (size_t)file->header->n_children;
    if (count == 0) return check_coverage(file);
    file->entries = file->allocator.alloc(file->allocator.user, count * sizeof(entry), 64);
    if (!file->entries) {
        return MSA_FAIL(MSA_ENOMEM, "%.200s: no memory for %zu tensors", file->path, count);
    }
    MSA__JSON_EACH(member, file->header)
    {
        if (!strcmp(member->key, "__metadata__")) continue;
        if (strlen(member->key) != member->key_bytes) {
            return msa__json_fail(member, MSA_EFORMAT, "its name must not contain U+0000");
        }
        MSA_TRY(read_entry(file, member, &file->entries[file->n_entries]));
        file->n_entries++;
    }
    MSA_TRY(check_coverage(file));
    MSA_TRY(msa__names_create(&file->names, &file->allocator, count));
    for (int64_t i = 0; i < file->n_entries; i++) {
        const msa__json *member = file->entries[i].member;
        int32_t existing; /* the JSON parser refused equal names */
        MSA_TRY(
            msa__names_add(&file->names, member->key, member->key_bytes, (int32_t)i, &existing));
    }
    return MSA_OK;
}

static msa_status read_header(msa_safetensors *file, const void *bytes, size_t n_bytes)
{
    const unsigned char *at = bytes;
    uint64_t header_bytes = 0;
    if (n_bytes < 8) {
        return MSA_FAIL(MSA_EFORMAT, "%.200s: %zu bytes, must be at least 8", file->path, n_bytes);
    }
    for (int i = 7; i >= 0; i--) header_bytes = header_bytes << 8 | at[i];
    if (header_bytes > MSA__SAFETENSORS_MAX_HEADER || header_bytes > n_bytes - 8) {
        return MSA_FAIL(MSA_EFORMAT,
                        "%.200s: header of %llu bytes, must be at most %u and end inside the file "
                        "of %zu bytes",
                        file->path, (unsigned long long)header_bytes, MSA__SAFETENSORS_MAX_HEADER,
                        n_bytes);
    }
    file->data = at + 8 + header_bytes;
    file->data_bytes = n_bytes - 8 - header_bytes;
    MSA_TRY(msa__json_parse(&file->header, &file->allocator, file->path, (const char *)at + 8,
                            (size_t)header_bytes));
    return read_entries(file);
}

static msa_status create(msa_safetensors **out, const msa_allocator *allocator, const char *path)
{
    size_t path_bytes = strlen(path) + 1;
    size_t bytes = sizeof(msa_safetensors) + path_bytes;
    msa_safetensors *file = allocator->alloc(allocator->user, bytes, 64);
    if (!file) return MSA_FAIL(MSA_ENOMEM, "%.200s: no memory for the file", path);
    memset(file, 0, sizeof(*file));
    memcpy(file + 1, path, path_bytes);
    file->path = (const char *)(file + 1);
    file->allocator = *allocator;
    file->struct_bytes = bytes;
    *out = file;
    return MSA_OK;
}

msa_status msa__safetensors_from_memory(msa_safetensors **out, const msa_allocator *allocator,
                                        const char *name, const void *data, size_t bytes)
{
    msa_safetensors *file;
    *out = NULL;
    MSA_TRY(create(&file, allocator, name));
    msa_status status = read_header(file, data, bytes);
    if (status != MSA_OK) {
        msa_safetensors_close(file);
        return status;
    }
    *out = file;
    return MSA_OK;
}

msa_status msa__safetensors_open(msa_safetensors **out, const msa_allocator *allocator,
                                 const char *path)
{
    const void *map;
    size_t bytes;
    *out = NULL;
    MSA_TRY(msa__file_map(path, &map, &bytes));
    msa_status status = msa__safetensors_from_memory(out, allocator, path, map, bytes);
    if (status != MSA_OK) {
        msa__file_unmap(map, bytes);
        return status;
    }
    (*out)->map = map;
    (*out)->map_bytes = bytes;
    return MSA_OK;
}

msa_status msa_safetensors_open(msa_safetensors **out, const char *path)
{
    if (!out || !path) {
        return MSA_FAIL(MSA_EINVAL, "safetensors: %s = NULL, must be given", out ? "path" : "out");
    }
    return msa__safetensors_open(out, &msa__default_allocator, path);
}

void msa_safetensors_close(msa_safetensors *file)
{
    if (!file) return;
    msa_allocator allocator = file->allocator;
    msa__names_destroy(&file->names);
    if (file->entries) {
        allocator.free(allocator.user, file->entries,
                       (size_t)file->header->n_children * sizeof(entry));
    }
    msa__json_free(file->header);
    msa__file_unmap(file->map, file->map_bytes);
    allocator.free(allocator.user, file, file->struct_bytes);
}

int64_t msa_safetensors_count(const msa_safetensors *file)
{
    return file->n_entries;
}

const char *msa_safetensors_name(const msa_safetensors *file, int64_t i)
{
    return i >= 0 && i < file->n_entries ? file->entries[i].member->key : NULL;
}

int64_t msa_safetensors_find(const msa_safetensors *file, const char *name)
{
    return file->n_entries ? msa__names_find(&file->names, name, strlen(name)) : -1;
}

msa_status msa_safetensors_get(const msa_safetensors *file, int64_t i, msa_tensor *tensor)
{
    if (i < 0 || i >= file->n_entries) {
        return MSA_FAIL(MSA_EINVAL, "safetensors: i = %lld, must be in 0..%lld", (long long)i,
                        (long long)file->n_entries - 1);
    }
    const entry *e = &file->entries[i];
    const msa__json *dtype = msa__json_get(e->member, "dtype");
    const msa__json *shape = msa__json_get(e->member, "shape");
    if (!e->dtype || e->dtype->dtype < 0) {
        return MSA_FAIL(MSA_EUNSUPPORTED, "%.200s: tensor %.120s: dtype %.20s is not supported",
                        file->path, e->member->key, dtype->text);
    }
    if (shape->n_children > MSA_MAX_DIMS) {
        return MSA_FAIL(MSA_EUNSUPPORTED, "%.200s: tensor %.120s: %d dimensions, at most %d",
                        file->path, e->member->key, shape->n_children, MSA_MAX_DIMS);
    }
    int64_t extents[MSA_MAX_DIMS] = {1, 1, 1, 1}, *extent = extents;
    MSA__JSON_EACH(item, shape) MSA_TRY(msa__json_int64(item, 0, INT64_MAX, extent++));
    const void *data = e->end > e->begin ? file->data + e->begin : NULL;
    *tensor = msa_tensor_make(data, e->dtype->dtype, shape->n_children, extents[0], extents[1],
                              extents[2], extents[3]);
    if ((uintptr_t)data % msa_dtype_bytes(tensor->dtype) != 0) {
        return MSA_FAIL(MSA_EUNSUPPORTED, "%.200s: tensor %.120s: data not aligned to its elements",
                        file->path, e->member->key);
    }
    return MSA_OK;
}

const char *msa__safetensors_path(const msa_safetensors *file)
{
    return file->path;
}

size_t msa__safetensors_data_bytes(const msa_safetensors *file)
{
    return file->data_bytes;
}
