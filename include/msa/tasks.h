/* Tasks that ask for what a long text says, made from a seed: needles, passkey, variable tracking,
 * common and frequent words, after RULER's definitions with our own words and fillers. One
 * generator serves evaluation and training; a sample is a pure function of its arguments, the same
 * bytes everywhere. docs/evaluation.md describes each task.
 */
#ifndef MSA_TASKS_H
#define MSA_TASKS_H

#include "msa/model.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Tokens of a text, as the model to be asked or trained counts them. */
typedef msa_status (*msa_count_tokens_fn)(void *user, const char *text, size_t text_bytes,
                                          int64_t *n_tokens);

/* Such a function: user is a const msa_tokenizer *. */
MSA_API MSA_CHECK_RESULT msa_status msa_tokenizer_count(void *user, const char *text,
                                                        size_t text_bytes, int64_t *n_tokens);

/* What keys and values are. */
#define MSA_TASK_WORD   1 /* keys adjective-noun; values a noun */
#define MSA_TASK_NUMBER 2 /* seven digits */
#define MSA_TASK_UUID   3

/* What surrounds the needles. */
#define MSA_HAYSTACK_NOISE   1 /* one dull line, again and again */
#define MSA_HAYSTACK_TEXT    2 /* sentences of args.text, or made-up ones without it */
#define MSA_HAYSTACK_NEEDLES 3 /* needles with other keys */

typedef struct msa_task_args {
    uint32_t struct_size;
    uint32_t flags;
    const char *task; /* a name from msa_task_name */
    int64_t length;   /* tokens that prompt, prefix and the allowance for the answer fit in */
    uint64_t seed;
    msa_count_tokens_fn count_tokens;
    void *count_user;
    /* Filler for MSA_HAYSTACK_TEXT: UTF-8, borrowed for the call. Each sample begins at a sentence
     * of its own; a text that is too short starts again from its beginning. */
    const char *text;
    size_t text_bytes;
    /* Of the needle tasks; 0: as the named task has it. n_keys * n_values <= 40. */
    int32_t n_keys, n_values, n_queries; /* values a key, keys asked for */
    int32_t key_type, value_type;        /* MSA_TASK_… */
    int32_t haystack;                    /* MSA_HAYSTACK_…; variable-tracking and passkey too */
} msa_task_args;
MSA_ARGS_INIT(msa_task_args)

typedef struct msa_task_sample {
    uint32_t struct_size;
    uint32_t flags;
    const char *prompt; /* text and question; strings are NUL-terminated UTF-8 */
    const char *prefix; /* how the answer begins: the model continues prompt + prefix */
    const char *answer; /* what a perfect model continues with, from the space to the full stop */
    const char *const *references; /* [n_references]: an answer must contain these */
    const double *depths; /* [n_depths]: where each needle that matters begins, 0 start, 1 end */
    int32_t n_references, n_depths;
    int32_t answer_tokens; /* allowance: RULER's, or more where the tokenizer needs it for answer */
    int32_t reserved;
    int64_t prompt_tokens; /* of prompt + prefix */
    void *memory;          /* all of the above */
} msa_task_sample;
MSA_ARGS_INIT(msa_task_sample)

/* Make sample `index` of a task: the longest whose prompt_tokens + answer_tokens <= length, to
 * about one sentence or word list entry.
 *
 * Ownership what sample points to is owned: msa_task_sample_free, which takes an initialised one
 * too Threads   reentrant; count_tokens is called some ten times Errors    MSA_EINVAL unknown task
 * (the message lists them), a parameter out of its range, a length that is too small: the message
 * says what would do; MSA_ENOMEM; what count_tokens returns
 */
MSA_API MSA_CHECK_RESULT msa_status msa_task_make(msa_task_sample *sample,
                                                  const msa_task_args *args, int64_t index);
MSA_API void msa_task_sample_free(msa_task_sample *sample);

/* Name and one-line description of task i; NULL past the end. */
MSA_API const char *msa_task_name(int32_t i, const char **description);

/* RULER's string match: the fraction of the references that the output contains, upper and lower
 * case of ASCII being equal; with any_one 1 as soon as it contains one (question answering). 0
 * without references. */
MSA_API double msa_answer_score(const char *output, size_t output_bytes,
                                const char *const *references, int32_t n_references,
                                int32_t any_one);

#ifdef __cplusplus
}
#endif
#endif
