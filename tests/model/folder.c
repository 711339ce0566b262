/* See folder.h. */
#define _GNU_SOURCE
#include "model/folder.h"

#include "harness/cmocka_all.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

folder folder_create(void)
{
    folder f = {"/tmp/msa-model-XXXXXX"};
    assert_non_null(mkdtemp(f.dir));
    return f;
}

const char *folder_path(const folder *f, const char *name)
{
    static char path[512];
    snprintf(path, sizeof(path), "%s/%s", f->dir, name);
    return path;
}

static int visit_files(const folder *f, int remove_them)
{
    int n = 0;
    DIR *dir = opendir(f->dir);
    assert_non_null(dir);
    for (struct dirent *entry; (entry = readdir(dir)) != NULL;) {
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..")) continue;
        if (remove_them) unlink(folder_path(f, entry->d_name));
        n++;
    }
    closedir(dir);
    return n;
}

int folder_count(const folder *f)
{
    return visit_files(f, 0);
}

void folder_remove(const folder *f)
{
    visit_files(f, 1);
    rmdir(f->dir);
}

void folder_write(const folder *f, const char *name, const void *bytes, size_t n)
{
    FILE *file = fopen(folder_path(f, name), "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(bytes, 1, n, file), n);
    assert_int_equal(fclose(file), 0);
}

char *read_whole_file(const char *path, size_t *n)
{
    FILE *file = fopen(path, "rb");
    if (!file) fail_msg("no file %s", path);
    fseek(file, 0, SEEK_END);
    long size = ftell(file);
    rewind(file);
    char *bytes = malloc((size_t)size + 1);
    assert_non_null(bytes);
    assert_int_equal(fread(bytes, 1, (size_t)size, file), size);
    bytes[size] = '\0';
    fclose(file);
    *n = (size_t)size;
    return bytes;
}

void folder_copy(const folder *f, const char *from_dir, const char *name)
{
    char from[512];
    size_t n;
    snprintf(from, sizeof(from), "%s/%s", from_dir, name);
    char *bytes = read_whole_file(from, &n);
    folder_write(f, name, bytes, n);
    free(bytes);
}

static const char *source_path(const char *where, const char *name)
{
    static char path[512];
    const char *source = getenv("MSA_SOURCE_DIR");
    snprintf(path, sizeof(path), "%s/%s/%s", source ? source : ".", where, name);
    return path;
}

const char *golden_model_dir(const char *name)
{
    const char *path = source_path("tests/golden/data/model", name);
    if (access(path, R_OK) != 0) path = source_path("../shared/golden/model", name);
    return access(path, R_OK) == 0 ? path : NULL;
}

char *read_test_data(const char *name)
{
    size_t n;
    return read_whole_file(source_path("tests/model/data", name), &n);
}
