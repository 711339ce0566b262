/* Listing a folder; see file_list.h. */
#define _POSIX_C_SOURCE 200809L
#include "data/file_list.h"

#include "base/error.h"
#include "model/files.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

msa_status msa__file_list_add(msa__file_list *files, const char *path)
{
    if (files->n == files->capacity) {
        int64_t capacity = files->capacity ? 2 * files->capacity : 64;
        char **grown = realloc(files->paths, (size_t)capacity * sizeof(*grown));
        if (!grown) return MSA_FAIL(MSA_ENOMEM, "%.300s: no memory to list it", path);
        files->paths = grown;
        files->capacity = capacity;
    }
    size_t bytes = strlen(path) + 1;
    char *copy = malloc(bytes);
    if (!copy) return MSA_FAIL(MSA_ENOMEM, "%.300s: no memory to list it", path);
    memcpy(copy, path, bytes);
    files->paths[files->n++] = copy;
    return MSA_OK;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static int32_t ends_in(const char *name, const char *ending)
{
    size_t n = strlen(name), m = strlen(ending);
    return n > m && !strcmp(name + n - m, ending);
}

static msa_status list_folder(msa__file_list *files, DIR *folder, const char *path,
                              const char *ending)
{
    const struct dirent *entry;
    while ((entry = readdir(folder))) {
        char file[1024];
        if (!ends_in(entry->d_name, ending)) continue;
        MSA_TRY(msa__path_join(file, sizeof(file), path, entry->d_name));
        if (msa__file_exists(file)) MSA_TRY(msa__file_list_add(files, file));
    }
    if (files->n == 0) {
        return MSA_FAIL(MSA_EFORMAT, "%.300s: must hold files named *%s", path, ending);
    }
    qsort(files->paths, (size_t)files->n, sizeof(*files->paths), by_name);
    return MSA_OK;
}

msa_status msa__file_list_fill(msa__file_list *files, const char *path, const char *ending)
{
    if (msa__file_exists(path)) return msa__file_list_add(files, path);
    DIR *folder = opendir(path);
    if (!folder) return MSA_FAIL(MSA_EIO, "%.300s: %s", path, strerror(errno));
    msa_status status = list_folder(files, folder, path, ending);
    closedir(folder);
    return status;
}

void msa__file_list_free(msa__file_list *files)
{
    for (int64_t i = 0; i < files->n; i++) free(files->paths[i]);
    free(files->paths);
    memset(files, 0, sizeof(*files));
}

int64_t msa__file_list_bytes(const msa__file_list *files, int64_t first, int64_t end)
{
    int64_t bytes = 0;
    for (int64_t i = first; i < end; i++) {
        struct stat info;
        if (stat(files->paths[i], &info) == 0) bytes += (int64_t)info.st_size;
    }
    return bytes;
}

msa_status msa__in_file(const char *path, msa_status status)
{
    char reason[256];
    snprintf(reason, sizeof(reason), "%s", msa_last_error());
    return MSA_FAIL(status, "%.300s: %s", path, reason);
}
