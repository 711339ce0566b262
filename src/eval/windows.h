/* Windows of a text's tokens, spread evenly over it. */
#ifndef MSA_EVAL_WINDOWS_H
#define MSA_EVAL_WINDOWS_H

#include "msa/eval.h"

typedef struct msa__windows {
    int32_t *tokens; /* [n_tokens] of the whole text; release with msa_free */
    int64_t n_tokens, length, count;
} msa__windows;

/* Of args->text; without it of made-up sentences, enough for windows that do not overlap. Errors
 * name the caller: MSA_EINVAL fewer tokens than a window has. */
msa_status msa__windows_open(const char *caller, const msa_eval_args *args, msa__windows *windows);

/* Window i: [length] tokens. */
const int32_t *msa__window(const msa__windows *windows, int64_t i);

#endif
