/* What the evaluations share: checking arguments, progress over many samples, asking one question.
 */
#ifndef MSA_EVAL_EVAL_H
#define MSA_EVAL_EVAL_H

#include "msa/eval.h"

/* What every evaluation needs of its arguments. */
msa_status msa__eval_args_check(const char *caller, const msa_eval_args *args);

/* One session's progress as part of the whole evaluation's. */
typedef struct msa__eval_watch {
    const msa_eval_args *args;
    int64_t done, total; /* tokens of finished samples; of all, as far as it is known */
} msa__eval_watch;

/* A msa_prefill_progress_fn; user is a watch. */
int32_t msa__eval_progress(void *watch, int64_t done, int64_t total);

/* n_samples are finished. MSA_ECANCELED when the caller wants no more. */
msa_status msa__eval_step(msa__eval_watch *watch, const char *caller, int64_t n_samples);

/* Let the model continue prompt + prefix greedily.
 *
 * one_line   1: the answer ends at a line break, which is not part of it
 * Ownership  *answer is owned: msa_free
 */
msa_status msa__answer(msa__eval_watch *watch, const char *prompt, const char *prefix,
                       int32_t max_tokens, int32_t one_line, msa_eval_result *result, char **answer,
                       size_t *answer_bytes);

#endif
