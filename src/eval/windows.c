/* See windows.h. */
#include "eval/windows.h"

#include "base/error.h"

msa_status msa__windows_open(const char *caller, const msa_eval_args *args, msa__windows *windows)
{
    size_t n_tokens = 0;
    windows->tokens = NULL;
    if (!args->text || args->text_bytes == 0) {
        return MSA_FAIL(MSA_EINVAL, "%s: text is empty, must be what is to be predicted", caller);
    }
    MSA_TRY(msa_tokenizer_encode(args->tokenizer, args->text, args->text_bytes, &windows->tokens,
                                 &n_tokens));
    windows->n_tokens = (int64_t)n_tokens;
    windows->length = args->length;
    windows->count = args->count;
    if (windows->n_tokens >= args->length) return MSA_OK;
    msa_free(windows->tokens);
    windows->tokens = NULL;
    return MSA_FAIL(MSA_EINVAL, "%s: length = %lld, the text has only %lld tokens", caller,
                    (long long)args->length, (long long)windows->n_tokens);
}

const int32_t *msa__window(const msa__windows *windows, int64_t i)
{
    int64_t last = windows->n_tokens - windows->length;
    if (windows->count < 2) return windows->tokens;
    return windows->tokens + (int64_t)((double)last * (double)i / (double)(windows->count - 1));
}
