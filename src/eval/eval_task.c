/* msa_eval_task: samples of a generated task, their scores by depth. */
#include "eval/eval.h"

#include "base/args.h"
#include "base/error.h"

#define DEPTH_BINS 10

typedef struct scores {
    double sum;
    double found[DEPTH_BINS];
    int64_t count[DEPTH_BINS];
} scores;

/* Every reference with a needle of its own counts in the tenth where that begins. */
static void add_depths(scores *s, const msa_task_sample *sample, const char *answer,
                       size_t answer_bytes)
{
    if (sample->n_depths != sample->n_references) return;
    for (int32_t i = 0; i < sample->n_depths; i++) {
        int32_t bin = (int32_t)(sample->depths[i] * DEPTH_BINS);
        if (bin >= DEPTH_BINS) bin = DEPTH_BINS - 1;
        s->found[bin] += msa_answer_score(answer, answer_bytes, &sample->references[i], 1, 0);
        s->count[bin]++;
    }
}

static msa_status run_sample(msa__eval_watch *watch, const msa_task_sample *sample,
                             msa_eval_result *result, scores *s)
{
    char *answer;
    size_t answer_bytes;
    MSA_TRY(msa__answer(watch, sample->prompt, sample->prefix, sample->answer_tokens, 1, result,
                        &answer, &answer_bytes));
    s->sum += msa_answer_score(answer, answer_bytes, sample->references, sample->n_references, 0);
    add_depths(s, sample, answer, answer_bytes);
    msa_free(answer);
    return MSA_OK;
}

static void summarize(const scores *s, msa_eval_result *result)
{
    result->accuracy = s->sum / (double)result->count;
    for (int32_t i = 0; i < DEPTH_BINS; i++) {
        if (s->count[i] == 0) continue;
        msa_eval_bin *bin = &result->bins[result->n_bins++];
        bin->from = (double)i / DEPTH_BINS;
        bin->to = (double)(i + 1) / DEPTH_BINS;
        bin->count = s->count[i];
        bin->accuracy = s->found[i] / (double)s->count[i];
    }
}

msa_status msa_eval_task(msa_eval_result *result, const msa_eval_args *caller_args)
{
    msa_eval_args args;
    scores s = {0};
    MSA_TRY(msa__args_copy("eval_task", &args, sizeof(args), caller_args));
    MSA_TRY(msa__eval_args_check("eval_task", &args));
    msa__eval_watch watch = {&args, 0, args.count * args.length};
    msa_task_args task;
    msa_task_args_init(&task);
    task.task = args.task;
    task.length = args.length;
    task.seed = args.seed;
    task.count_tokens = msa_tokenizer_count;
    task.count_user = (void *)(uintptr_t)args.tokenizer;
    task.text = args.text;
    task.text_bytes = args.text_bytes;
    msa_eval_result_init(result);
    result->length = args.length;
    for (; result->count < args.count; result->count++) {
        msa_task_sample sample;
        msa_task_sample_init(&sample);
        MSA_TRY(msa_task_make(&sample, &task, result->count));
        msa_status status = run_sample(&watch, &sample, result, &s);
        msa_task_sample_free(&sample);
        MSA_TRY(status);
        MSA_TRY(msa__eval_step(&watch, "eval_task", result->count + 1));
    }
    summarize(&s, result);
    return MSA_OK;
}
