/* Files of a model folder; see files.h. */
#define _POSIX_C_SOURCE 200809L
#include "model/files.h"

#include "base/error.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

msa_status msa__path_join(char *path, size_t path_bytes, const char *dir, const char *name)
{
    int n = snprintf(path, path_bytes, "%s/%s", dir, name);
    if (n < 0 || (size_t)n >= path_bytes) {
        return MSA_FAIL(MSA_EINVAL, "path: %.200s…/%.100s, must be shorter than %zu bytes", dir,
                        name, path_bytes);
    }
    return MSA_OK;
}

int32_t msa__file_exists(const char *path)
{
    struct stat info;
    return stat(path, &info) == 0 && S_ISREG(info.st_mode);
}

/* A pipe or device could block or have no size: regular files only. */
static msa_status open_regular(const char *path, int *fd, size_t *bytes)
{
    struct stat info;
    *fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (*fd < 0) return MSA_FAIL(MSA_EIO, "%.300s: %s", path, strerror(errno));
    if (fstat(*fd, &info) != 0 || !S_ISREG(info.st_mode)) {
        close(*fd);
        return MSA_FAIL(MSA_EIO, "%.300s: must be a regular file", path);
    }
    *bytes = (size_t)info.st_size;
    return MSA_OK;
}

static msa_status read_all(int fd, const char *path, char *text, size_t bytes)
{
    for (size_t done = 0; done < bytes;) {
        ssize_t n = read(fd, text + done, bytes - done);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return MSA_FAIL(MSA_EIO, "%.300s: %s", path, strerror(errno));
        if (n == 0) return MSA_FAIL(MSA_EIO, "%.300s: became shorter while it was read", path);
        done += (size_t)n;
    }
    return MSA_OK;
}

msa_status msa__file_read(const char *path, size_t max_bytes, const msa_allocator *allocator,
                          char **text, size_t *bytes)
{
    int fd;
    *text = NULL;
    MSA_TRY(open_regular(path, &fd, bytes));
    msa_status status = MSA_OK;
    if (*bytes > max_bytes) {
        status = MSA_FAIL(MSA_EFORMAT, "%.300s: %zu bytes, must be at most %zu", path, *bytes,
                          max_bytes);
        goto done;
    }
    *text = allocator->alloc(allocator->user, *bytes + 1, 64);
    if (!*text) {
        status = MSA_FAIL(MSA_ENOMEM, "%.300s: no memory for %zu bytes", path, *bytes);
        goto done;
    }
    (*text)[*bytes] = '\0';
    status = read_all(fd, path, *text, *bytes);
    if (status != MSA_OK) {
        allocator->free(allocator->user, *text, *bytes + 1);
        *text = NULL;
    }
done:
    close(fd);
    return status;
}

msa_status msa__file_write(const char *path, const char *text, size_t bytes)
{
    char partial[1100];
    if (snprintf(partial, sizeof(partial), "%s.partial-%ld", path, (long)getpid()) >=
        (int)sizeof(partial)) {
        return MSA_FAIL(MSA_EINVAL, "path: %.300s, too long", path);
    }
    FILE *file = fopen(partial, "wb");
    if (!file) return MSA_FAIL(MSA_EIO, "%.300s: %s", partial, strerror(errno));
    int32_t good = fwrite(text, 1, bytes, file) == bytes;
    good &= fclose(file) == 0;
    if (good && rename(partial, path) == 0) return MSA_OK;
    msa_status status = MSA_FAIL(MSA_EIO, "%.300s: %s", path, strerror(errno));
    unlink(partial);
    return status;
}

msa_status msa__file_map(const char *path, const void **data, size_t *bytes)
{
    int fd;
    *data = NULL;
    MSA_TRY(open_regular(path, &fd, bytes));
    msa_status status = MSA_OK;
    if (*bytes > 0) {
        void *map = mmap(NULL, *bytes, PROT_READ, MAP_SHARED, fd, 0);
        if (map == MAP_FAILED) {
            status = MSA_FAIL(errno == ENOMEM ? MSA_ENOMEM : MSA_EIO, "%.300s: mmap: %s", path,
                              strerror(errno));
        } else {
            *data = map;
        }
    }
    close(fd); /* the map keeps the file */
    return status;
}

void msa__file_unmap(const void *data, size_t bytes)
{
    if (data) munmap((void *)(uintptr_t)data, bytes);
}
