/* Rows of made tasks; see task_source.h. */
#include "data/task_source.h"

#include "base/alloc.h"
#include "base/error.h"
#include "base/rng.h"
#include "data/file_list.h"
#include "model/buffers.h"
#include "model/checksum.h"
#include "model/files.h"
#include "model/json_optional.h"
#include "model/utf8.h"
#include "msa/tasks.h"

#include <stdlib.h>
#include <string.h>

static msa_status no_memory(void)
{
    return MSA_FAIL(MSA_ENOMEM, "dataset: no memory for a source of tasks");
}

/* ---- one sample --------------------------------------------------------------------------- */

/* A sample as a document: prompt and answer are tokenized apart, as a model that is asked sees the
 * prompt alone. *n_prompt counts the tokens before the answer. */
static msa_status tokenize_sample(const msa__vocabulary *v, const msa_task_sample *sample,
                                  msa__ids *document, size_t *n_prompt)
{
    msa__text prompt = {0};
    int32_t *ids = NULL;
    size_t n_ids;
    msa__text_puts(&prompt, sample->prompt);
    msa__text_puts(&prompt, sample->prefix);
    msa_status status = prompt.status;
    if (status == MSA_OK) {
        status = msa_tokenizer_encode(v->tokenizer, prompt.bytes, prompt.n, &ids, &n_ids);
    }
    msa__text_free(&prompt);
    MSA_TRY(status);
    status = msa__ids_add(document, ids, n_ids);
    msa_free(ids);
    MSA_TRY(status);
    *n_prompt = n_ids;
    size_t n = strlen(sample->answer);
    MSA_TRY(msa_tokenizer_encode(v->tokenizer, sample->answer, n, &ids, &n_ids));
    status = msa__ids_add(document, ids, n_ids);
    msa_free(ids);
    return status == MSA_OK ? msa__ids_add(document, &v->eos, 1) : status;
}

/* Sample number `index` of a task in at most length tokens. */
static msa_status make_document(const msa__task_source *source, const msa__vocabulary *v,
                                const char *task, int64_t length, uint64_t key, int64_t index,
                                msa__ids *document, size_t *n_prompt)
{
    msa_task_args args;
    msa_task_sample sample;
    msa_task_args_init(&args);
    msa_task_sample_init(&sample);
    args.task = task;
    args.length = length - 1; /* the end of the document */
    args.seed = key;
    args.count_tokens = msa_tokenizer_count;
    args.count_user = v->tokenizer;
    args.text = source->haystack;
    args.text_bytes = source->haystack_bytes;
    document->n = 0;
    msa_status status = msa_task_make(&sample, &args, index);
    if (status == MSA_OK) status = tokenize_sample(v, &sample, document, n_prompt);
    msa_task_sample_free(&sample);
    if (status == MSA_OK && document->n > (size_t)length) {
        status = MSA_FAIL(MSA_EINTERNAL, "dataset: task %s has %zu tokens, must be at most %lld",
                          task, document->n, (long long)length);
    }
    return status;
}

/* ---- rows --------------------------------------------------------------------------------- */

msa_status msa__task_source_row(const msa__task_source *source, const msa__vocabulary *vocabulary,
                                uint64_t key, uint64_t row, int64_t length, msa__batch *out)
{
    msa__ids document = {0};
    msa_status status = MSA_OK;
    int64_t left = length;
    for (uint64_t index = row << MSA__SAMPLE_BITS; status == MSA_OK; index++) {
        uint32_t words[4];
        size_t n_prompt;
        msa__philox(key, index, 0, words);
        const char *task = source->tasks[words[0] % (uint32_t)source->n_tasks];
        int64_t room = msa__lengths_draw(&source->lengths, words[1], left);
        if (room == 0) break;
        status = make_document(source, vocabulary, task, room, key, (int64_t)index, &document,
                               &n_prompt);
        if (status != MSA_OK) break;
        int64_t first_target = source->loss_on_all ? 0 : (int64_t)n_prompt - 1;
        msa__batch_add(out, document.ids, (int64_t)document.n, -1, first_target);
        left -= (int64_t)document.n;
    }
    msa_free(document.ids);
    if (status == MSA_OK && left == length) {
        return MSA_FAIL(MSA_EINVAL,
                        "dataset: sequences of %lld tokens, the tasks' lengths are all "
                        "above",
                        (long long)length);
    }
    if (status == MSA_OK && left > 0) msa__batch_pad(out, vocabulary->eos, left);
    return status;
}

/* ---- open --------------------------------------------------------------------------------- */

static msa_status read_tasks(msa__task_source *source, const msa__json *description)
{
    const msa__json *tasks;
    MSA_TRY(need_typed(description, "tasks", MSA__JSON_ARRAY, &tasks));
    if (tasks->n_children == 0) {
        return msa__json_fail(tasks, MSA_EFORMAT, "must hold at least one task");
    }
    source->tasks = calloc((size_t)tasks->n_children, sizeof(*source->tasks));
    if (!source->tasks) return no_memory();
    MSA__JSON_EACH(item, tasks)
    {
        const char *name;
        MSA_TRY(msa__json_string(item, &name));
        char *copy = malloc((size_t)item->text_bytes + 1);
        if (!copy) return no_memory();
        memcpy(copy, name, (size_t)item->text_bytes + 1);
        source->tasks[source->n_tasks++] = copy;
        source->fingerprint = msa__checksum(source->fingerprint, name, item->text_bytes);
    }
    return MSA_OK;
}

static msa_status read_loss(msa__task_source *source, const msa__json *description)
{
    const msa__json *loss = msa__json_get(description, "loss");
    source->loss_on_all = loss && msa__json_equals(loss, "all");
    if (loss && !source->loss_on_all && !msa__json_equals(loss, "answer")) {
        return msa__json_fail(loss, MSA_EFORMAT, "must be \"answer\" or \"all\"");
    }
    source->fingerprint =
        msa__checksum(source->fingerprint, &source->loss_on_all, sizeof(source->loss_on_all));
    return MSA_OK;
}

static msa_status add_file(msa__text *text, const char *path)
{
    const void *data;
    size_t bytes;
    MSA_TRY(msa__file_map(path, &data, &bytes));
    size_t invalid = msa__utf8_check(data, bytes);
    if (invalid < bytes) {
        msa__file_unmap(data, bytes);
        return MSA_FAIL(MSA_EFORMAT, "%.300s: byte %zu, must be valid UTF-8", path, invalid);
    }
    msa__text_add(text, data, bytes);
    msa__text_puts(text, "\n");
    msa__file_unmap(data, bytes);
    return text->status;
}

/* All files of the folder in one text: a sample begins at any sentence of it. */
static msa_status read_haystack(msa__task_source *source, const msa__json *description)
{
    const msa__json *folder = msa__json_get(description, "haystack");
    const char *path;
    if (!folder) return MSA_OK;
    MSA_TRY(msa__json_string(folder, &path));
    msa__file_list files = {0};
    msa__text text = {0};
    msa_status status = msa__file_list_fill(&files, path, ".txt");
    for (int64_t i = 0; i < files.n && status == MSA_OK; i++) {
        status = add_file(&text, files.paths[i]);
    }
    msa__file_list_free(&files);
    if (status == MSA_OK) {
        source->fingerprint = msa__checksum(source->fingerprint, text.bytes, text.n);
        status = msa__text_finish(&text, &source->haystack, &source->haystack_bytes);
    } else {
        msa__text_free(&text);
    }
    return status;
}

/* Each task in the shortest length: what cannot be made fails now. */
static msa_status try_tasks(const msa__task_source *source, const msa__vocabulary *vocabulary)
{
    msa__ids document = {0};
    msa_status status = MSA_OK;
    int64_t shortest = source->lengths.of[0];
    for (int32_t i = 1; i < source->lengths.n; i++) {
        if (source->lengths.of[i] < shortest) shortest = source->lengths.of[i];
    }
    for (int32_t i = 0; i < source->n_tasks && status == MSA_OK; i++) {
        size_t n_prompt;
        status = make_document(source, vocabulary, source->tasks[i], shortest, 0, 0, &document,
                               &n_prompt);
    }
    msa_free(document.ids);
    return status;
}

msa_status msa__task_source_open(msa__task_source *source, const msa__json *description,
                                 const msa__vocabulary *vocabulary)
{
    source->fingerprint = MSA__CHECKSUM_START;
    const msa__json *lengths;
    MSA_TRY(read_tasks(source, description));
    MSA_TRY(msa__json_need(description, "lengths", &lengths));
    MSA_TRY(msa__lengths_read(&source->lengths, lengths, &source->fingerprint));
    MSA_TRY(read_loss(source, description));
    MSA_TRY(read_haystack(source, description));
    return try_tasks(source, vocabulary);
}

void msa__task_source_close(msa__task_source *source)
{
    for (int32_t i = 0; i < source->n_tasks; i++) free(source->tasks[i]);
    free(source->tasks);
    msa__lengths_free(&source->lengths);
    msa_free(source->haystack);
    memset(source, 0, sizeof(*source));
}
