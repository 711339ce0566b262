/* How much haystack fills a length: a search for the largest number of units that fits.
 *
 * Tokens grow almost in proportion to units, so each guess is interpolated; every third one is bold
 * (halves the interval, or doubles the step while nothing was too large yet), which bounds the
 * number of guesses whatever the tokens do.
 */
#include "tasks/task.h"

#include "base/error.h"

#include <stdlib.h>

typedef struct search {
    msa__task *task;
    const msa_task_args *args;
    msa__draft *draft;
    msa__string whole;         /* prompt + prefix */
    int64_t budget;            /* tokens of prompt + prefix */
    int64_t fits, fits_tokens; /* units known to fit, and what they take */
    int64_t base, base_tokens; /* the same for the smallest haystack */
    int64_t over;              /* units known not to fit, or one more than there may be */
    int64_t over_tokens;       /* what the former take; 0: the latter */
} search;

static msa_status write_units(search *s, int64_t n_units)
{
    msa__draft_clear(s->draft);
    s->task->preset.family->write(s->task, n_units, s->draft);
    return msa__draft_status(s->draft);
}

static msa_status count_units(search *s, int64_t n_units, int64_t *tokens)
{
    const msa__draft *draft = s->draft;
    MSA_TRY(write_units(s, n_units));
    s->whole.n = 0;
    msa__string_add(&s->whole, draft->prompt.bytes, draft->prompt.n);
    msa__string_add(&s->whole, draft->prefix.bytes, draft->prefix.n);
    MSA_TRY(s->whole.status);
    return s->args->count_tokens(s->args->count_user, s->whole.bytes, s->whole.n, tokens);
}

/* The smallest sample in a style; its answer decides the allowance, which no haystack changes. */
static msa_status measure(search *s, int32_t *answer_tokens)
{
    int64_t needed;
    const msa__task_preset *preset = &s->task->preset;
    s->fits = s->base = preset->family->min_units;
    MSA_TRY(count_units(s, s->base, &s->base_tokens));
    s->fits_tokens = s->base_tokens;
    MSA_TRY(s->args->count_tokens(s->args->count_user, s->draft->answer.bytes, s->draft->answer.n,
                                  &needed));
    *answer_tokens = preset->answer_tokens > needed ? preset->answer_tokens : (int32_t)needed;
    s->budget = s->args->length - *answer_tokens;
    return MSA_OK;
}

static msa_status begin(search *s, int32_t *answer_tokens)
{
    const msa__task_preset *preset = &s->task->preset;
    for (s->task->style = 0; s->task->style < preset->family->n_styles; s->task->style++) {
        MSA_TRY(measure(s, answer_tokens));
        if (s->base_tokens > s->budget) continue;
        s->over = preset->family->max_units(s->task) + 1;
        return MSA_OK;
    }
    return MSA_FAIL(MSA_EINVAL, "task: length = %lld, %s needs %lld tokens at least",
                    (long long)s->args->length, preset->name,
                    (long long)(s->base_tokens + *answer_tokens));
}

static int64_t guess(const search *s, int bold)
{
    double per_unit = 16, left = (double)(s->budget - s->fits_tokens);
    if (s->over_tokens > 0) {
        per_unit = (double)(s->over_tokens - s->fits_tokens) / (double)(s->over - s->fits);
    } else if (s->fits > s->base) {
        per_unit = (double)(s->fits_tokens - s->base_tokens) / (double)(s->fits - s->base);
    }
    int64_t step = (int64_t)(left / (per_unit > 0.5 ? per_unit : 0.5));
    if (bold) step = s->over_tokens > 0 ? (s->over - s->fits) / 2 : 2 * step;
    if (step < 1) step = 1;
    return step < s->over - s->fits ? s->fits + step : s->over - 1;
}

static msa_status run(search *s)
{
    int64_t written = s->base; /* units that the draft holds */
    for (int round = 1; s->over - s->fits > 1; round++) {
        int64_t tokens;
        written = guess(s, round % 3 == 0);
        MSA_TRY(count_units(s, written, &tokens));
        if (tokens > s->budget) {
            s->over = written;
            s->over_tokens = tokens;
        } else {
            s->fits = written;
            s->fits_tokens = tokens;
        }
    }
    return written == s->fits ? MSA_OK : write_units(s, s->fits);
}

msa_status msa__task_fill(msa__task *task, const msa_task_args *args, msa__draft *draft,
                          int32_t *answer_tokens, int64_t *prompt_tokens)
{
    search s = {.task = task, .args = args, .draft = draft};
    msa_status status = begin(&s, answer_tokens);
    if (status == MSA_OK) status = run(&s);
    *prompt_tokens = s.fits_tokens;
    free(s.whole.bytes);
    return status;
}
