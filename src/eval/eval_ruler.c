/* msa_eval_ruler: the samples of a file, asked and scored as RULER does. Its answers may take
 * several lines. */
#include "eval/eval.h"
#include "eval/ruler_file.h"

#include "base/args.h"
#include "base/error.h"

static msa_status run_sample(msa__eval_watch *watch, const msa__ruler_sample *sample,
                             msa_eval_result *result, double *sum)
{
    char *answer;
    size_t answer_bytes;
    MSA_TRY(msa__answer(watch, sample->input, sample->prefix, sample->kind->answer_tokens, 0,
                        result, &answer, &answer_bytes));
    *sum += msa_answer_score(answer, answer_bytes, sample->outputs, sample->n_outputs,
                             sample->kind->any_one);
    msa_free(answer);
    return MSA_OK;
}

msa_status msa_eval_ruler(msa_eval_result *result, const msa_eval_args *caller_args,
                          const msa_ruler_file *file)
{
    msa_eval_args args;
    double sum = 0;
    if (!file) return MSA_FAIL(MSA_EINVAL, "eval_ruler: file = NULL, must be open");
    MSA_TRY(msa__args_copy("eval_ruler", &args, sizeof(args), caller_args));
    if (args.count == 0 || args.count > file->n_lines) args.count = file->n_lines;
    args.length = file->max_tokens;
    MSA_TRY(msa__eval_args_check("eval_ruler", &args));
    msa__eval_watch watch = {&args, 0, args.count * args.length};
    msa_eval_result_init(result);
    result->length = args.length;
    for (; result->count < args.count; result->count++) {
        msa__ruler_sample sample;
        MSA_TRY(msa__ruler_sample_get(file, result->count, &sample));
        msa_status status = run_sample(&watch, &sample, result, &sum);
        msa__ruler_sample_free(&sample);
        MSA_TRY(status);
        MSA_TRY(msa__eval_step(&watch, "eval_ruler", result->count + 1));
    }
    result->accuracy = sum / (double)result->count;
    return MSA_OK;
}
