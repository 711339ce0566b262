/* The log of a run; see train_log.h. */
#include "train/train_log.h"

#include "base/alloc.h"
#include "base/error.h"
#include "model/files.h"
#include "model/json.h"
#include "train/folders.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LOG_MAX_BYTES ((size_t)1 << 32)

struct msa__log {
    FILE *file;
    char path[MSA__PATH_BYTES];
    msa__text line;
};

/* ---- dropping what a run wrote after its last checkpoint ----------------------------------- */

/* 1: a whole line of a step that the checkpoint holds. */
static int32_t is_kept(const char *line, size_t bytes, int64_t step)
{
    const msa__json *root;
    int64_t found = INT64_MAX;
    if (msa__json_parse(&root, NULL, "log.jsonl", line, bytes) != MSA_OK) return 0;
    const msa__json *value = msa__json_get(root, "step");
    if (value && msa__json_int64(value, 0, INT64_MAX, &found) != MSA_OK) found = INT64_MAX;
    msa__json_free(root);
    return found <= step;
}

static msa_status drop_later(const char *path, int64_t step)
{
    char *text;
    size_t bytes, kept = 0;
    const msa_allocator *allocator = &msa__default_allocator;
    if (!msa__file_exists(path)) return MSA_OK;
    MSA_TRY(msa__file_read(path, LOG_MAX_BYTES, allocator, &text, &bytes));
    for (size_t at = 0; at < bytes;) {
        const char *end = memchr(text + at, '\n', bytes - at);
        if (!end) break;
        size_t next = (size_t)(end - text) + 1;
        if (is_kept(text + at, next - 1 - at, step)) {
            memmove(text + kept, text + at, next - at);
            kept += next - at;
        }
        at = next;
    }
    msa_status status = kept == bytes ? MSA_OK : msa__file_write(path, text, kept);
    allocator->free(allocator->user, text, bytes + 1);
    return status;
}

/* ---- the log ------------------------------------------------------------------------------ */

msa_status msa__log_open(msa__log **out, const char *output, int64_t step)
{
    msa__log *log = calloc(1, sizeof(*log));
    *out = NULL;
    if (!log) return MSA_FAIL(MSA_ENOMEM, "train: no memory for the log");
    msa_status status = msa__path_join(log->path, sizeof(log->path), output, "log.jsonl");
    if (status == MSA_OK) status = drop_later(log->path, step);
    if (status == MSA_OK) log->file = fopen(log->path, "ab");
    if (status == MSA_OK && !log->file) {
        status = MSA_FAIL(MSA_EIO, "%.300s: %s", log->path, strerror(errno));
    }
    if (status != MSA_OK) {
        free(log);
        return status;
    }
    *out = log;
    return MSA_OK;
}

void msa__log_close(msa__log *log)
{
    if (!log) return;
    (void)fclose(log->file); /* every line was flushed */
    msa__text_free(&log->line);
    free(log);
}

static void add_key(msa__log *log, const char *key)
{
    msa__text_puts(&log->line, log->line.n > 1 ? ", \"" : "\"");
    msa__text_puts(&log->line, key);
    msa__text_puts(&log->line, "\": ");
}

static void add_number(msa__log *log, double value)
{
    char text[32] = "null";
    if (isfinite(value)) (void)snprintf(text, sizeof(text), "%.9g", value);
    msa__text_puts(&log->line, text);
}

void msa__log_begin(msa__log *log, const char *kind, int64_t step)
{
    log->line.n = 0;
    msa__text_puts(&log->line, "{");
    msa__log_text(log, "kind", kind);
    msa__log_count(log, "step", step);
}

void msa__log_count(msa__log *log, const char *key, int64_t value)
{
    char text[32];
    (void)snprintf(text, sizeof(text), "%" PRId64, value);
    add_key(log, key);
    msa__text_puts(&log->line, text);
}

void msa__log_number(msa__log *log, const char *key, double value)
{
    add_key(log, key);
    add_number(log, value);
}

/* Names of stages come from JSON strings; what would need an escape becomes a space. */
void msa__log_text(msa__log *log, const char *key, const char *value)
{
    add_key(log, key);
    msa__text_puts(&log->line, "\"");
    for (; *value; value++) {
        int plain = (unsigned char)*value >= 0x20 && *value != '"' && *value != '\\';
        msa__text_add(&log->line, plain ? value : " ", 1);
    }
    msa__text_puts(&log->line, "\"");
}

void msa__log_numbers(msa__log *log, const char *key, const double *values, int64_t n)
{
    add_key(log, key);
    msa__text_puts(&log->line, "[");
    for (int64_t i = 0; i < n; i++) {
        if (i) msa__text_puts(&log->line, ", ");
        add_number(log, values[i]);
    }
    msa__text_puts(&log->line, "]");
}

msa_status msa__log_end(msa__log *log)
{
    msa__text_puts(&log->line, "}\n");
    MSA_TRY(log->line.status);
    size_t written = fwrite(log->line.bytes, 1, log->line.n, log->file);
    if (written == log->line.n && fflush(log->file) == 0) return MSA_OK;
    return MSA_FAIL(MSA_EIO, "%.300s: %s", log->path, strerror(errno));
}
