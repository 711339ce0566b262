/* Making a sample: the arguments become a recipe, the recipe a draft, the draft one piece of
 * memory. */
#include "tasks/task.h"

#include "base/args.h"
#include "base/error.h"
#include "tasks/sentences.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

msa_status msa_tokenizer_count(void *user, const char *text, size_t text_bytes, int64_t *n_tokens)
{
    int32_t *ids = NULL;
    size_t n_ids = 0;
    MSA_TRY(msa_tokenizer_encode(user, text, text_bytes, &ids, &n_ids));
    msa_free(ids);
    *n_tokens = (int64_t)n_ids;
    return MSA_OK;
}

/* ---- the recipe --------------------------------------------------------------------------- */

static msa_status find_preset(const char *name, msa__task_preset *preset)
{
    char known[512] = "";
    size_t n = 0;
    if (!name) return MSA_FAIL(MSA_EINVAL, "task: task = NULL, must be a name");
    for (const msa__task_preset *p = msa__task_table; p->name; p++) {
        if (strcmp(p->name, name) == 0) {
            *preset = *p;
            return MSA_OK;
        }
        n += (size_t)snprintf(known + n, sizeof(known) - n, "%s%s", n ? ", " : "", p->name);
    }
    return MSA_FAIL(MSA_EINVAL, "task: task = \"%.40s\", must be one of %s", name, known);
}

/* A parameter that the caller may change: 0 keeps the preset's, which is 0 where it has no meaning.
 */
static msa_status change(const char *name, int32_t value, int32_t max, int32_t *parameter)
{
    if (value == 0) return MSA_OK;
    if (*parameter == 0) return MSA_FAIL(MSA_EINVAL, "task: %s has no meaning in this task", name);
    if (value < 0 || value > max) {
        return MSA_FAIL(MSA_EINVAL, "task: %s = %d, must be 1..%d", name, (int)value, (int)max);
    }
    *parameter = value;
    return MSA_OK;
}

static msa_status apply_changes(const msa_task_args *args, msa__task_preset *p)
{
    int32_t max_haystack = p->n_keys ? MSA_HAYSTACK_NEEDLES : MSA_HAYSTACK_TEXT;
    MSA_TRY(change("n_keys", args->n_keys, MSA__MAX_NEEDLES, &p->n_keys));
    MSA_TRY(change("n_values", args->n_values, MSA__MAX_NEEDLES, &p->n_values));
    MSA_TRY(change("n_queries", args->n_queries, MSA__MAX_NEEDLES, &p->n_queries));
    MSA_TRY(change("key_type", args->key_type, MSA_TASK_UUID, &p->key_type));
    MSA_TRY(change("value_type", args->value_type, MSA_TASK_UUID, &p->value_type));
    MSA_TRY(change("haystack", args->haystack, max_haystack, &p->haystack));
    if (p->n_keys * p->n_values > MSA__MAX_NEEDLES) {
        return MSA_FAIL(MSA_EINVAL, "task: n_keys * n_values = %d, must be at most %d",
                        (int)(p->n_keys * p->n_values), MSA__MAX_NEEDLES);
    }
    if (p->n_queries > p->n_keys) {
        return MSA_FAIL(MSA_EINVAL, "task: n_queries = %d, must be at most n_keys = %d",
                        (int)p->n_queries, (int)p->n_keys);
    }
    return MSA_OK;
}

/* FNV-1a: tasks with the same seed draw apart. */
static uint64_t hash_name(const char *name)
{
    uint64_t hash = 0xcbf29ce484222325u;
    for (; *name; name++) hash = (hash ^ (unsigned char)*name) * 0x100000001b3u;
    return hash;
}

static msa_status make_recipe(const msa_task_args *args, int64_t index, msa__task *task)
{
    MSA_TRY(find_preset(args->task, &task->preset));
    MSA_TRY(apply_changes(args, &task->preset));
    if (args->length < 1 || args->length > (int64_t)1 << 30) {
        return MSA_FAIL(MSA_EINVAL, "task: length = %lld, must be 1..2^30",
                        (long long)args->length);
    }
    if (index < 0)
        return MSA_FAIL(MSA_EINVAL, "task: index = %lld, must be >= 0", (long long)index);
    if (!args->count_tokens) {
        return MSA_FAIL(MSA_EINVAL, "task: count_tokens = NULL, must be a function");
    }
    if (args->text && !msa__has_sentence(args->text, args->text_bytes)) {
        return MSA_FAIL(MSA_EINVAL, "task: text of %zu bytes, must hold a word", args->text_bytes);
    }
    task->length = args->length;
    task->text = args->text;
    task->text_bytes = args->text_bytes;
    task->draws.key = args->seed ^ hash_name(args->task);
    task->draws.sample = (uint64_t)index;
    return MSA_OK;
}

/* ---- the sample --------------------------------------------------------------------------- */

/* Layout: references' addresses, depths, references, prompt, prefix, answer. */
static msa_status pack(const msa__draft *draft, msa_task_sample *sample)
{
    size_t n = (size_t)draft->n_references, strings = n * (sizeof(char *) + MSA__REFERENCE_BYTES);
    size_t bytes =
        strings + sizeof(draft->depths) + draft->prompt.n + draft->prefix.n + draft->answer.n + 3;
    char *memory = malloc(bytes);
    if (!memory) return MSA_FAIL(MSA_ENOMEM, "task: no memory for a sample of %zu bytes", bytes);
    const char **references = (const char **)memory;
    double *depths = (double *)(references + n);
    char *next = (char *)(depths + MSA__MAX_NEEDLES);
    for (size_t i = 0; i < n; i++, next += MSA__REFERENCE_BYTES) {
        references[i] = memcpy(next, draft->references[i], MSA__REFERENCE_BYTES);
    }
    memcpy(depths, draft->depths, sizeof(draft->depths));
    sample->prompt = memcpy(next, draft->prompt.bytes, draft->prompt.n + 1);
    sample->prefix = memcpy(next += draft->prompt.n + 1, draft->prefix.bytes, draft->prefix.n + 1);
    sample->answer = memcpy(next += draft->prefix.n + 1, draft->answer.bytes, draft->answer.n + 1);
    sample->references = references;
    sample->depths = depths;
    sample->n_references = draft->n_references;
    sample->n_depths = draft->n_depths;
    sample->memory = memory;
    return MSA_OK;
}

/* The draft is too large for some threads' stacks. */
static msa_status make(msa_task_sample *sample, const msa_task_args *args, msa__task *task)
{
    msa__draft *draft = calloc(1, sizeof(*draft));
    if (!draft) return MSA_FAIL(MSA_ENOMEM, "task: no memory for a sample");
    msa_status status =
        msa__task_fill(task, args, draft, &sample->answer_tokens, &sample->prompt_tokens);
    if (status == MSA_OK) status = pack(draft, sample);
    msa__draft_free(draft);
    free(draft);
    return status;
}

msa_status msa_task_make(msa_task_sample *sample, const msa_task_args *caller_args, int64_t index)
{
    msa_task_args args;
    msa__task task;
    msa_task_sample made;
    msa_task_sample_init(&made);
    if (!sample || sample->struct_size != sizeof(*sample)) {
        return MSA_FAIL(MSA_EINVAL, "task: sample must be initialised");
    }
    MSA_TRY(msa__args_copy("task", &args, sizeof(args), caller_args));
    MSA_TRY(make_recipe(&args, index, &task));
    MSA_TRY(make(&made, &args, &task));
    *sample = made;
    return MSA_OK;
}

void msa_task_sample_free(msa_task_sample *sample)
{
    if (!sample) return;
    free(sample->memory);
    msa_task_sample_init(sample);
}
