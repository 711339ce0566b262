/* Reading text: one file, or a folder's, joined. */
#include "msa/eval.h"

#include "base/error.h"
#include "data/file_list.h"
#include "model/buffers.h"
#include "model/files.h"

#include <string.h>

static msa_status check_utf8(const char *path, const char *text, size_t n)
{
    for (size_t at = 0; at < n;) {
        int32_t valid;
        size_t step = msa_utf8_next(text + at, n - at, &valid);
        if (!valid) {
            return MSA_FAIL(MSA_EFORMAT, "%.300s: byte %zu, must be UTF-8 text", path, at);
        }
        at += step;
    }
    return MSA_OK;
}

static msa_status add_file(msa__text *text, const char *path)
{
    const void *data = NULL;
    size_t bytes = 0;
    MSA_TRY(msa__file_map(path, &data, &bytes));
    msa_status status = check_utf8(path, data, bytes);
    if (status == MSA_OK && bytes > 0) {
        if (text->n > 0) msa__text_puts(text, "\n\n");
        msa__text_add(text, data, bytes);
    }
    msa__file_unmap(data, bytes);
    return status;
}

msa_status msa_eval_read_text(char **out, size_t *text_bytes, const char *path)
{
    msa__file_list files = {0};
    msa__text text = {0};
    if (!out || !text_bytes || !path) {
        return MSA_FAIL(MSA_EINVAL, "eval_read_text: an argument is NULL");
    }
    msa_status status = msa__file_list_fill(&files, path, ".txt");
    for (int64_t i = 0; i < files.n && status == MSA_OK; i++) {
        status = add_file(&text, files.paths[i]);
    }
    msa__file_list_free(&files);
    if (status != MSA_OK) {
        msa__text_free(&text);
        return status;
    }
    return msa__text_finish(&text, out, text_bytes);
}
