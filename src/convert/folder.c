/* See folder.h. */
#define _POSIX_C_SOURCE 200809L
#include "convert/folder.h"

#include "base/alloc.h"
#include "base/error.h"
#include "model/files.h"

#include <dirent.h>
#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#define SIDE_MAX_BYTES ((size_t)256 << 20)

msa_status msa__convert_make_folder(const char *what, const char *dir)
{
    if (mkdir(dir, 0777) == 0) return MSA_OK;
    DIR *folder = errno == EEXIST ? opendir(dir) : NULL;
    if (!folder) return MSA_FAIL(MSA_EIO, "%s: %.300s: %s", what, dir, strerror(errno));
    int32_t n = 0;
    while (readdir(folder)) n++;
    closedir(folder);
    if (n <= 2) return MSA_OK; /* . and .. */
    return MSA_FAIL(MSA_EINVAL, "%s: out_dir = %.300s, must be empty or not exist", what, dir);
}

static msa_status copy_file(const char *source_dir, const char *dir, const char *name)
{
    char from[1100], to[1100];
    char *text;
    size_t bytes;
    MSA_TRY(msa__path_join(from, sizeof(from), source_dir, name));
    MSA_TRY(msa__path_join(to, sizeof(to), dir, name));
    if (!msa__file_exists(from)) return MSA_OK;
    const msa_allocator *allocator = &msa__default_allocator;
    MSA_TRY(msa__file_read(from, SIDE_MAX_BYTES, allocator, &text, &bytes));
    msa_status status = msa__file_write(to, text, bytes);
    allocator->free(allocator->user, text, bytes + 1);
    return status;
}

msa_status msa__convert_finish_folder(const char *source_dir, const char *dir,
                                      const msa__text *config)
{
    static const char *const side_files[] = {"tokenizer.json",
                                             "tokenizer_config.json",
                                             "special_tokens_map.json",
                                             "vocab.json",
                                             "merges.txt",
                                             "added_tokens.json",
                                             "chat_template.jinja",
                                             "generation_config.json"};
    char path[1100];
    for (size_t i = 0; i < sizeof(side_files) / sizeof(side_files[0]); i++) {
        MSA_TRY(copy_file(source_dir, dir, side_files[i]));
    }
    MSA_TRY(msa__path_join(path, sizeof(path), dir, "config.json"));
    return msa__file_write(path, config->bytes, config->n);
}
