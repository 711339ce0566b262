/* Folders of checkpoints; see folders.h. */
#define _POSIX_C_SOURCE 200809L
#include "train/folders.h"

#include "base/alloc.h"
#include "base/error.h"
#include "model/files.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define FILE_MAX_BYTES ((size_t)256 << 20) /* of a file that is copied */
#define PARTIAL        ".partial-"

static msa_status fail(const char *path)
{
    return MSA_FAIL(MSA_EIO, "%.300s: %s", path, strerror(errno));
}

msa_status msa__folder_make(const char *path)
{
    char part[MSA__PATH_BYTES];
    size_t bytes = strlen(path);
    if (bytes >= sizeof(part)) {
        return MSA_FAIL(MSA_EINVAL, "path: %.200s…, must be shorter than %zu bytes", path,
                        sizeof(part));
    }
    for (size_t i = 1; i <= bytes; i++) {
        if (path[i] != '/' && path[i] != '\0') continue;
        memcpy(part, path, i);
        part[i] = '\0';
        if (mkdir(part, 0777) != 0 && errno != EEXIST) return fail(part);
    }
    return MSA_OK;
}

msa_status msa__folder_remove(const char *path)
{
    char file[MSA__PATH_BYTES];
    DIR *folder = opendir(path);
    const struct dirent *entry;
    msa_status status = MSA_OK;
    if (!folder) return errno == ENOENT ? MSA_OK : fail(path);
    while (status == MSA_OK && (entry = readdir(folder))) {
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..")) continue;
        status = msa__path_join(file, sizeof(file), path, entry->d_name);
        if (status == MSA_OK && unlink(file) != 0) status = fail(file);
    }
    closedir(folder);
    if (status == MSA_OK && rmdir(path) != 0) status = fail(path);
    return status;
}

msa_status msa__folder_of_step(char *path, const char *output, int64_t step)
{
    char name[40];
    (void)snprintf(name, sizeof(name), "step-%06lld", (long long)step);
    return msa__path_join(path, MSA__PATH_BYTES, output, name);
}

/* The step of a name "step-N", -1: another name. */
static int64_t step_of(const char *name)
{
    long long step = -1;
    int used = 0;
    if (sscanf(name, "step-%lld%n", &step, &used) != 1 || name[used]) return -1;
    return step;
}

msa_status msa__folder_newest(const char *output, int64_t below, int64_t *step)
{
    DIR *folder = opendir(output);
    const struct dirent *entry;
    *step = -1;
    if (!folder) return errno == ENOENT ? MSA_OK : fail(output);
    while ((entry = readdir(folder))) {
        int64_t found = step_of(entry->d_name);
        if (found > *step && found < below) *step = found;
    }
    closedir(folder);
    return MSA_OK;
}

/* A name that no reader looks for, so that half a folder is never taken for a checkpoint. */
static msa_status remove_checkpoint(const char *output, int64_t step)
{
    char path[MSA__PATH_BYTES], hidden[MSA__PATH_BYTES], name[64];
    (void)snprintf(name, sizeof(name), PARTIAL "old-%lld", (long long)step);
    MSA_TRY(msa__folder_of_step(path, output, step));
    MSA_TRY(msa__path_join(hidden, sizeof(hidden), output, name));
    if (rename(path, hidden) != 0) return fail(path);
    return msa__folder_remove(hidden);
}

static msa_status remove_partial(const char *output)
{
    char path[MSA__PATH_BYTES];
    DIR *folder = opendir(output);
    const struct dirent *entry;
    msa_status status = MSA_OK;
    if (!folder) return fail(output);
    while (status == MSA_OK && (entry = readdir(folder))) {
        if (strncmp(entry->d_name, PARTIAL, strlen(PARTIAL)) != 0) continue;
        status = msa__path_join(path, sizeof(path), output, entry->d_name);
        if (status == MSA_OK) status = msa__folder_remove(path);
    }
    closedir(folder);
    return status;
}

msa_status msa__folder_prune(const char *output, int64_t kept)
{
    int64_t step = INT64_MAX;
    for (int64_t i = 0;; i++) {
        MSA_TRY(msa__folder_newest(output, step, &step));
        if (step < 0) break;
        if (i >= kept) MSA_TRY(remove_checkpoint(output, step));
    }
    return remove_partial(output);
}

msa_status msa__folder_copy(const char *from, const char *to, const char *name)
{
    char path[MSA__PATH_BYTES], *text;
    size_t bytes;
    const msa_allocator *allocator = &msa__default_allocator;
    MSA_TRY(msa__path_join(path, sizeof(path), from, name));
    if (!msa__file_exists(path)) return MSA_OK;
    MSA_TRY(msa__file_read(path, FILE_MAX_BYTES, allocator, &text, &bytes));
    msa_status status = msa__path_join(path, sizeof(path), to, name);
    if (status == MSA_OK) status = msa__file_write(path, text, bytes);
    allocator->free(allocator->user, text, bytes + 1);
    return status;
}
