/* See training.h. */
#include "training.h"

#include "command.h"
#include "interrupt.h"
#include "output.h"
#include "progress.h"

#include <math.h>

static void watch_tokens(void *user, int64_t done, int64_t total)
{
    cli_progress_update(user, done >> 20, total >> 20);
}

msa_status cli_training_open(msa_trainer **trainer, msa_context *ctx, msa_trainer_args *args,
                             int32_t quiet)
{
    cli_progress bar;
    cli_progress_begin(&bar, "tokenizing", "MiB", quiet);
    args->progress = watch_tokens;
    args->user = &bar;
    msa_status status = msa_trainer_create(trainer, ctx, args);
    cli_progress_clear();
    return status;
}

/* "sparse: step 1,200 of 4,000  loss 3.412  validation 3.398  KL 0.031" */
static void tell(const msa_trainer_state *s)
{
    char step[32], n_steps[32];
    cli_progress_clear();
    cli_talk("%s: step %s of %s", s->stage_name, cli_grouped(s->step, step),
             cli_grouped(s->n_steps, n_steps));
    if (isfinite(s->loss)) cli_talk("  loss %.4f", s->loss);
    if (isfinite(s->validation_loss)) cli_talk("  validation %.4f", s->validation_loss);
    if (isfinite(s->index_loss)) cli_talk("  KL %.4f", s->index_loss);
    if (s->skipped) cli_talk("  skipped: gradients are not finite");
    if (s->saved) cli_talk("  saved in %s", s->folder);
    cli_talk("\n");
}

/* One step, told about where it matters. */
static msa_status step(msa_trainer *trainer, cli_progress *bar, int32_t quiet, msa_trainer_state *s)
{
    msa_status status = msa_trainer_step(trainer);
    if (status == MSA_OK) status = msa_trainer_get_state(trainer, s);
    if (status != MSA_OK) return status;
    if ((s->saved || s->skipped) && !quiet) tell(s);
    cli_progress_update(bar, s->tokens, s->n_tokens);
    return MSA_OK;
}

msa_status cli_training_run(msa_trainer *trainer, int64_t n_steps, int32_t quiet,
                            msa_trainer_state *s)
{
    cli_progress bar;
    msa_status status = msa_trainer_get_state(trainer, s);
    int64_t last = n_steps == CLI_UNSET ? INT64_MAX : s->step + n_steps;
    if (status == MSA_OK && s->folder && !quiet) cli_talk("going on from %s\n", s->folder);
    cli_progress_begin(&bar, "training", "tokens", quiet);
    while (status == MSA_OK && s->stage < s->n_stages && s->step < last && !cli_interrupted()) {
        status = step(trainer, &bar, quiet, s);
    }
    cli_progress_clear();
    if (status == MSA_OK) status = msa_trainer_save(trainer);
    return status == MSA_OK ? msa_trainer_get_state(trainer, s) : status;
}
