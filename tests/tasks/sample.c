/* See sample.h. */
#include "tasks/sample.h"

#include "harness/cmocka_all.h"

#include <ctype.h>

msa_status sample_count(void *user, const char *text, size_t text_bytes, int64_t *n_tokens)
{
    (void)user;
    int64_t n = 0, run = 0;
    for (size_t i = 0; i < text_bytes; i++) {
        run = isalnum((unsigned char)text[i]) ? run + 1 : 0;
        n += run ? run % 5 == 1 : !isspace((unsigned char)text[i]);
    }
    *n_tokens = n;
    return MSA_OK;
}

msa_task_args sample_args(const char *task, int64_t length, uint64_t seed)
{
    msa_task_args args;
    msa_task_args_init(&args);
    args.task = task;
    args.length = length;
    args.seed = seed;
    args.count_tokens = sample_count;
    return args;
}

msa_task_sample sample_make(const msa_task_args *args, int64_t index)
{
    msa_task_sample sample;
    msa_task_sample_init(&sample);
    EXPECT_OK(msa_task_make(&sample, args, index));
    return sample;
}

int32_t sample_occurrences(const char *text, const char *part)
{
    int32_t n = 0;
    for (const char *at = text; (at = strstr(at, part)) != NULL; at++) n++;
    return n;
}

void sample_context(const msa_task_sample *sample, const char **begin, const char **end)
{
    const char *question = sample->prompt, *next;
    while ((next = strstr(question + 1, "\n\nQuestion: ")) != NULL) question = next;
    assert_ptr_not_equal(question, sample->prompt);
    *end = question;
    *begin = sample->prompt;
    for (const char *at = sample->prompt; (at = strstr(at, "\n\n")) != NULL && at < question;
         at++) {
        *begin = at + 2;
    }
}
