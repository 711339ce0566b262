/* Reading RULER's files; see ruler_file.h. */
#include "eval/ruler_file.h"

#include "base/error.h"
#include "model/files.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Allowances of RULER's configuration; any other task is asked like niah. */
static const msa__ruler_kind kinds[] = {
    {"niah", 128, 0}, {"vt", 30, 0}, {"cwe", 120, 0}, {"fwe", 50, 0}, {"qa", 32, 1},
};

/* The kind of "qa_1", "vt", "niah_single_2.jsonl"; NULL: another word. */
static const msa__ruler_kind *find_kind(const char *name, size_t bytes)
{
    for (size_t i = 0; i < sizeof(kinds) / sizeof(*kinds); i++) {
        size_t n = strlen(kinds[i].name);
        if (bytes < n || memcmp(name, kinds[i].name, n) != 0) continue;
        if (bytes == n || name[n] == '_' || name[n] == '.') return &kinds[i];
    }
    return NULL;
}

/* RULER writes DATA/qa_1/validation.jsonl: the file's name, then its folder's. */
static const msa__ruler_kind *kind_of_path(const char *path)
{
    size_t end = strlen(path);
    for (int part = 0; part < 2; part++) {
        size_t begin = end;
        while (begin > 0 && path[begin - 1] != '/') begin--;
        const msa__ruler_kind *kind = find_kind(path + begin, end - begin);
        if (kind) return kind;
        end = begin > 0 ? begin - 1 : 0;
    }
    return &kinds[0];
}

static msa_status read_outputs(const msa__json *outputs, msa__ruler_sample *sample)
{
    MSA_TRY(msa__json_type_is(outputs, MSA__JSON_ARRAY));
    if (outputs->n_children < 1) {
        return msa__json_fail(outputs, MSA_EFORMAT, "must hold at least one string");
    }
    sample->outputs = malloc((size_t)outputs->n_children * sizeof(*sample->outputs));
    if (!sample->outputs) return MSA_FAIL(MSA_ENOMEM, "ruler: no memory for a list of outputs");
    MSA__JSON_EACH(output, outputs)
    {
        MSA_TRY(msa__json_string(output, &sample->outputs[sample->n_outputs]));
        sample->n_outputs++;
    }
    return MSA_OK;
}

static msa_status read_object(const msa__json *root, const char *path, msa__ruler_sample *sample)
{
    const msa__json *value;
    MSA_TRY(msa__json_type_is(root, MSA__JSON_OBJECT));
    MSA_TRY(msa__json_need(root, "input", &value));
    MSA_TRY(msa__json_string(value, &sample->input));
    sample->prefix = "";
    value = msa__json_get(root, "answer_prefix");
    if (value) MSA_TRY(msa__json_string(value, &sample->prefix));
    if (!*sample->input && !*sample->prefix) {
        return MSA_FAIL(MSA_EFORMAT, "%.300s: input is empty, must be a prompt", path);
    }
    sample->kind = kind_of_path(path);
    value = msa__json_get(root, "task");
    if (value) {
        const char *task;
        MSA_TRY(msa__json_string(value, &task));
        const msa__ruler_kind *kind = find_kind(task, strlen(task));
        sample->kind = kind ? kind : &kinds[0];
    }
    MSA_TRY(msa__json_need(root, "outputs", &value));
    return read_outputs(value, sample);
}

static msa_status parse_line(const msa_ruler_file *file, const msa__ruler_line *line,
                             msa__ruler_sample *sample)
{
    char name[1100];
    memset(sample, 0, sizeof(*sample));
    snprintf(name, sizeof(name), "%s:%lld", file->name, (long long)line->number);
    MSA_TRY(msa__json_parse(&sample->root, NULL, name, file->data + line->at, line->bytes));
    msa_status status = read_object(sample->root, file->name, sample);
    if (status != MSA_OK) msa__ruler_sample_free(sample);
    return status;
}

msa_status msa__ruler_sample_get(const msa_ruler_file *file, int64_t i, msa__ruler_sample *sample)
{
    return parse_line(file, &file->lines[i], sample);
}

void msa__ruler_sample_free(msa__ruler_sample *sample)
{
    free(sample->outputs);
    msa__json_free(sample->root);
    memset(sample, 0, sizeof(*sample));
}

/* ---- the file ----------------------------------------------------------------------------- */

static msa_status count_tokens(const msa__ruler_sample *sample, const msa_tokenizer *tokenizer,
                               int64_t *max_tokens)
{
    int64_t input, prefix; /* apart: their sum is at least what both together take */
    void *user = (void *)(uintptr_t)tokenizer;
    MSA_TRY(msa_tokenizer_count(user, sample->input, strlen(sample->input), &input));
    MSA_TRY(msa_tokenizer_count(user, sample->prefix, strlen(sample->prefix), &prefix));
    int64_t tokens = input + prefix + sample->kind->answer_tokens;
    if (tokens > *max_tokens) *max_tokens = tokens;
    return MSA_OK;
}

static msa_status add_line(msa_ruler_file *file, const msa__ruler_line *line,
                           const msa_tokenizer *tokenizer)
{
    msa__ruler_sample sample;
    MSA_TRY(parse_line(file, line, &sample));
    msa_status status = count_tokens(&sample, tokenizer, &file->max_tokens);
    msa__ruler_sample_free(&sample);
    MSA_TRY(status);
    if (file->n_lines == file->capacity) {
        int64_t capacity = file->capacity ? 2 * file->capacity : 64;
        msa__ruler_line *grown = realloc(file->lines, (size_t)capacity * sizeof(*grown));
        if (!grown) return MSA_FAIL(MSA_ENOMEM, "%.300s: no memory for its lines", file->name);
        file->lines = grown;
        file->capacity = capacity;
    }
    file->lines[file->n_lines++] = *line;
    return MSA_OK;
}

static int is_blank(const char *text, size_t n)
{
    while (n > 0 && (text[n - 1] == ' ' || text[n - 1] == '\t' || text[n - 1] == '\r')) n--;
    return n == 0;
}

static msa_status add_lines(msa_ruler_file *file, size_t bytes, const msa_tokenizer *tokenizer)
{
    msa__ruler_line line = {0, 0, 1};
    for (; line.at < bytes; line.at += line.bytes + 1, line.number++) {
        const char *begin = file->data + line.at;
        const char *end = memchr(begin, '\n', bytes - line.at);
        line.bytes = end ? (size_t)(end - begin) : bytes - line.at;
        if (!is_blank(begin, line.bytes)) MSA_TRY(add_line(file, &line, tokenizer));
    }
    if (file->n_lines > 0) return MSA_OK;
    return MSA_FAIL(MSA_EFORMAT, "%.300s: must hold at least one line", file->name);
}

msa_status msa__ruler_read(msa_ruler_file **out, const char *name, const char *data, size_t bytes,
                           const msa_tokenizer *tokenizer)
{
    *out = NULL;
    msa_ruler_file *file = calloc(1, sizeof(*file));
    if (!file) return MSA_FAIL(MSA_ENOMEM, "%.300s: no memory to open it", name);
    snprintf(file->name, sizeof(file->name), "%s", name);
    file->data = data;
    msa_status status = add_lines(file, bytes, tokenizer);
    if (status == MSA_OK) {
        *out = file;
    } else {
        msa_ruler_close(file);
    }
    return status;
}

msa_status msa_ruler_open(msa_ruler_file **out, const char *path, const msa_tokenizer *tokenizer)
{
    const void *data;
    size_t bytes;
    if (!out) return MSA_FAIL(MSA_EINVAL, "ruler_open: out = NULL, must be a pointer");
    *out = NULL;
    if (!path || !tokenizer) {
        return MSA_FAIL(MSA_EINVAL, "ruler_open: path and tokenizer must not be NULL");
    }
    MSA_TRY(msa__file_map(path, &data, &bytes));
    msa_status status = msa__ruler_read(out, path, data, bytes, tokenizer);
    if (status == MSA_OK) {
        (*out)->mapped_bytes = bytes;
    } else {
        msa__file_unmap(data, bytes);
    }
    return status;
}

void msa_ruler_close(msa_ruler_file *file)
{
    if (!file) return;
    if (file->mapped_bytes > 0) msa__file_unmap(file->data, file->mapped_bytes);
    free(file->lines);
    free(file);
}

msa_status msa_ruler_get_info(const msa_ruler_file *file, msa_ruler_info *info)
{
    if (!file || !info || info->struct_size != sizeof(*info)) {
        return MSA_FAIL(MSA_EINVAL, "ruler_get_info: file must be open and info initialised");
    }
    info->n_samples = file->n_lines;
    info->max_tokens = file->max_tokens;
    return MSA_OK;
}
