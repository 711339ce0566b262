/* Writer of safetensors files; see msa/safetensors.h.
 *
 * Declared tensors stand one behind the other; the first write fixes the header and so every
 * offset. The header is padded with spaces until the data begins on 64 bytes. Writes go to their
 * place with pwrite; a byte count per tensor tells at the end whether everything arrived.
 */
#define _POSIX_C_SOURCE 200809L
#include "base/alloc.h"
#include "base/error.h"
#include "base/overflow.h"
#include "model/names.h"
#include "msa/safetensors.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct declared {
    char *name;
    msa_dtype dtype;
    int32_t n_dims;
    int64_t shape[MSA_MAX_DIMS];
    size_t begin, bytes, written;
} declared;

struct msa_safetensors_writer {
    char *path, *partial_path;
    int fd;
    declared *tensors;
    int64_t n_tensors, capacity;
    size_t data_bytes;  /* declared so far */
    size_t data_offset; /* in the file; 0: header not yet written */
};

static msa_status fail_io(const msa_safetensors_writer *w)
{
    return MSA_FAIL(MSA_EIO, "%.300s: %s", w->partial_path, strerror(errno));
}

static msa_status no_memory(const char *path)
{
    return MSA_FAIL(MSA_ENOMEM, "%.300s: no memory to write it", path);
}

msa_status msa_safetensors_writer_create(msa_safetensors_writer **out, const char *path)
{
    if (!out || !path) {
        return MSA_FAIL(MSA_EINVAL, "safetensors_writer: %s = NULL, must be given",
                        out ? "path" : "out");
    }
    *out = NULL;
    msa_safetensors_writer *w = calloc(1, sizeof(*w));
    if (!w) return no_memory(path);
    w->fd = -1;
    size_t path_bytes = strlen(path) + 1;
    w->path = malloc(path_bytes);
    w->partial_path = malloc(path_bytes + 32);
    if (!w->path || !w->partial_path) {
        msa_safetensors_writer_destroy(w);
        return no_memory(path);
    }
    memcpy(w->path, path, path_bytes);
    (void)snprintf(w->partial_path, path_bytes + 32, "%s.partial-%ld", path, (long)getpid());
    w->fd = open(w->partial_path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (w->fd < 0) {
        msa_status status = fail_io(w);
        msa_safetensors_writer_destroy(w);
        return status;
    }
    *out = w;
    return MSA_OK;
}

void msa_safetensors_writer_destroy(msa_safetensors_writer *w)
{
    if (!w) return;
    if (w->fd >= 0) {
        close(w->fd);
        unlink(w->partial_path);
    }
    for (int64_t i = 0; i < w->n_tensors; i++) free(w->tensors[i].name);
    free(w->tensors);
    free(w->path);
    free(w->partial_path);
    free(w);
}

static const char *dtype_name(msa_dtype dtype)
{
    static const char *const names[] = {"F32", "BF16", "F16", "F8_E4M3", "U8", "I32", "I64"};
    return dtype >= 0 && dtype < (msa_dtype)(sizeof(names) / sizeof(names[0])) ? names[dtype]
                                                                               : NULL;
}

static msa_status check_declaration(const msa_safetensors_writer *w, const char *name,
                                    msa_dtype dtype, int32_t n_dims, const int64_t *shape,
                                    size_t *bytes)
{
    if (w->data_offset) {
        return MSA_FAIL(MSA_EINVAL, "safetensors_writer: %.120s declared after the first write",
                        name);
    }
    if (!*name || !strcmp(name, "__metadata__") || strpbrk(name, "\"\\")) {
        return MSA_FAIL(MSA_EINVAL, "safetensors_writer: name = %.120s, must be a plain name",
                        name);
    }
    for (const char *c = name; *c; c++) {
        if ((unsigned char)*c < 0x20 || (unsigned char)*c > 0x7e) {
            return MSA_FAIL(MSA_EINVAL, "safetensors_writer: name = %.120s, must be ASCII", name);
        }
    }
    if (!dtype_name(dtype) || n_dims < 0 || n_dims > MSA_MAX_DIMS) {
        return MSA_FAIL(MSA_EINVAL, "safetensors_writer: %.120s: dtype = %d, n_dims = %d, unknown",
                        name, dtype, n_dims);
    }
    *bytes = msa_dtype_bytes(dtype);
    for (int32_t i = 0; i < n_dims; i++) {
        if (shape[i] < 0 || msa__mul_overflow(*bytes, (size_t)shape[i], bytes)) {
            return MSA_FAIL(MSA_EINVAL,
                            "safetensors_writer: %.120s: shape[%d] = %lld, out of range", name, i,
                            (long long)shape[i]);
        }
    }
    return MSA_OK;
}

msa_status msa_safetensors_writer_declare(msa_safetensors_writer *w, const char *name,
                                          msa_dtype dtype, int32_t n_dims, const int64_t *shape,
                                          int64_t *index)
{
    size_t bytes = 0, end;
    MSA_TRY(check_declaration(w, name, dtype, n_dims, shape, &bytes));
    if (msa__add_overflow(w->data_bytes, bytes, &end) || end > (size_t)INT64_MAX / 2) {
        return MSA_FAIL(MSA_EINVAL, "safetensors_writer: %.120s: file too large", name);
    }
    if (w->n_tensors == w->capacity) {
        int64_t capacity = w->capacity ? 2 * w->capacity : 64;
        declared *grown = realloc(w->tensors, (size_t)capacity * sizeof(*grown));
        if (!grown) return no_memory(w->path);
        w->tensors = grown;
        w->capacity = capacity;
    }
    declared *d = &w->tensors[w->n_tensors];
    memset(d, 0, sizeof(*d));
    size_t name_bytes = strlen(name) + 1;
    d->name = malloc(name_bytes);
    if (!d->name) return no_memory(w->path);
    memcpy(d->name, name, name_bytes);
    d->dtype = dtype;
    d->n_dims = n_dims;
    for (int32_t i = 0; i < n_dims; i++) d->shape[i] = shape[i];
    d->bytes = bytes;
    w->data_bytes = end;
    *index = w->n_tensors++;
    return MSA_OK;
}

static msa_status write_at(const msa_safetensors_writer *w, const void *data, size_t bytes,
                           size_t offset)
{
    const char *from = data;
    while (bytes > 0) {
        ssize_t n = pwrite(w->fd, from, bytes, (off_t)offset);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return fail_io(w);
        from += n;
        offset += (size_t)n;
        bytes -= (size_t)n;
    }
    return MSA_OK;
}

static size_t print_header(const msa_safetensors_writer *w, char *text, size_t room)
{
    size_t used = (size_t)snprintf(text, room, "{\"__metadata__\":{\"format\":\"pt\"}");
    for (int64_t i = 0; i < w->n_tensors; i++) {
        const declared *d = &w->tensors[i];
        used += (size_t)snprintf(text + used, room - used, ",\"%s\":{\"dtype\":\"%s\",\"shape\":[",
                                 d->name, dtype_name(d->dtype));
        for (int32_t k = 0; k < d->n_dims; k++) {
            used += (size_t)snprintf(text + used, room - used, k ? ",%lld" : "%lld",
                                     (long long)d->shape[k]);
        }
        used += (size_t)snprintf(text + used, room - used, "],\"data_offsets\":[%zu,%zu]}",
                                 d->begin, d->begin + d->bytes);
    }
    text[used++] = '}';
    return used;
}

static msa_status check_names(const msa_safetensors_writer *w)
{
    msa__names names;
    MSA_TRY(msa__names_create(&names, &msa__default_allocator, (size_t)w->n_tensors));
    msa_status status = MSA_OK;
    for (int64_t i = 0; i < w->n_tensors && status == MSA_OK; i++) {
        const char *name = w->tensors[i].name;
        int32_t existing;
        status = msa__names_add(&names, name, strlen(name), 0, &existing);
        if (status == MSA_OK && existing >= 0) {
            status = MSA_FAIL(MSA_EINVAL, "safetensors_writer: %.120s declared twice", name);
        }
    }
    msa__names_destroy(&names);
    return status;
}

static void lay_out(msa_safetensors_writer *w)
{
    size_t end = 0;
    for (size_t element_bytes = 8; element_bytes > 0; element_bytes /= 2) {
        for (int64_t i = 0; i < w->n_tensors; i++) {
            if (msa_dtype_bytes(w->tensors[i].dtype) != element_bytes) continue;
            w->tensors[i].begin = end;
            end += w->tensors[i].bytes;
        }
    }
}

static msa_status write_header(msa_safetensors_writer *w)
{
    lay_out(w);
    MSA_TRY(check_names(w));
    size_t room = 128;
    for (int64_t i = 0; i < w->n_tensors; i++) room += strlen(w->tensors[i].name) + 256;
    char *block = malloc(room);
    if (!block) return no_memory(w->path);
    size_t end = 8 + print_header(w, block + 8, room - 72);
    while (end % 64 != 0) block[end++] = ' ';
    uint64_t header_bytes = end - 8;
    for (int i = 0; i < 8; i++) block[i] = (char)(header_bytes >> (8 * i) & 0xff);
    msa_status status = write_at(w, block, end, 0);
    free(block);
    if (status == MSA_OK) w->data_offset = end;
    return status;
}

msa_status msa_safetensors_writer_write(msa_safetensors_writer *w, int64_t index, int64_t offset,
                                        const void *data, size_t bytes)
{
    if (index < 0 || index >= w->n_tensors) {
        return MSA_FAIL(MSA_EINVAL, "safetensors_writer: index = %lld, must be in 0..%lld",
                        (long long)index, (long long)w->n_tensors - 1);
    }
    declared *d = &w->tensors[index];
    if (offset < 0 || (size_t)offset > d->bytes || bytes > d->bytes - (size_t)offset) {
        return MSA_FAIL(MSA_EINVAL,
                        "safetensors_writer: %.120s: offset = %lld and %zu bytes, it has %zu bytes",
                        d->name, (long long)offset, bytes, d->bytes);
    }
    if (!w->data_offset) MSA_TRY(write_header(w));
    MSA_TRY(write_at(w, data, bytes, w->data_offset + d->begin + (size_t)offset));
    d->written += bytes;
    return MSA_OK;
}

msa_status msa_safetensors_writer_finish(msa_safetensors_writer *w)
{
    if (w->fd < 0) return MSA_FAIL(MSA_EINVAL, "safetensors_writer: finished twice");
    for (int64_t i = 0; i < w->n_tensors; i++) {
        const declared *d = &w->tensors[i];
        if (d->written == d->bytes) continue;
        return MSA_FAIL(MSA_EINVAL, "safetensors_writer: %.120s: %zu of %zu bytes were written",
                        d->name, d->written, d->bytes);
    }
    if (!w->data_offset) MSA_TRY(write_header(w));
    int fd = w->fd;
    w->fd = -1;
    if (close(fd) != 0 || rename(w->partial_path, w->path) != 0) {
        msa_status status = fail_io(w);
        unlink(w->partial_path);
        return status;
    }
    return MSA_OK;
}
