/* msa train: train a model as a configuration says, or go on with a run that was cut off. */
#include "command.h"
#include "device.h"
#include "interrupt.h"
#include "output.h"
#include "progress.h"

#include "msa/train.h"

#include <math.h>

typedef struct train_options {
    const char *config, *device;
    int64_t threads, steps;
    int32_t fresh, quiet;
} train_options;

static void watch_tokens(void *user, int64_t done, int64_t total)
{
    cli_progress_update(user, done >> 20, total >> 20);
}

static msa_status open_trainer(const train_options *o, msa_context *ctx, msa_trainer **trainer)
{
    msa_trainer_args args;
    cli_progress bar;
    cli_progress_begin(&bar, "tokenizing", "MiB", o->quiet);
    msa_trainer_args_init(&args);
    args.config_path = o->config;
    args.fresh = o->fresh;
    args.progress = watch_tokens;
    args.user = &bar;
    msa_status status = msa_trainer_create(trainer, ctx, &args);
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
static msa_status step(const train_options *o, msa_trainer *trainer, cli_progress *bar,
                       msa_trainer_state *s)
{
    msa_status status = msa_trainer_step(trainer);
    if (status == MSA_OK) status = msa_trainer_get_state(trainer, s);
    if (status != MSA_OK) return status;
    if ((s->saved || s->skipped) && !o->quiet) tell(s);
    cli_progress_update(bar, s->tokens, s->n_tokens);
    return MSA_OK;
}

/* Steps until the end, the limit of --steps, or Ctrl-C; the last two leave a checkpoint too. */
static msa_status run_steps(const train_options *o, msa_trainer *trainer, msa_trainer_state *s)
{
    cli_progress bar;
    msa_status status = msa_trainer_get_state(trainer, s);
    int64_t last = o->steps == CLI_UNSET ? INT64_MAX : s->step + o->steps;
    if (status == MSA_OK && s->folder && !o->quiet) cli_talk("going on from %s\n", s->folder);
    cli_progress_begin(&bar, "training", "tokens", o->quiet);
    while (status == MSA_OK && s->stage < s->n_stages && s->step < last && !cli_interrupted()) {
        status = step(o, trainer, &bar, s);
    }
    cli_progress_clear();
    if (status == MSA_OK) status = msa_trainer_save(trainer);
    return status == MSA_OK ? msa_trainer_get_state(trainer, s) : status;
}

static int run_train(const void *values)
{
    const train_options *o = values;
    msa_context *ctx;
    msa_trainer *trainer = NULL;
    msa_trainer_state s;
    msa_trainer_state_init(&s);
    int result = cli_open_context(o->device, o->threads, &ctx);
    if (result != CLI_OK) return result;
    cli_interrupt_catch();
    msa_status status = open_trainer(o, ctx, &trainer);
    if (status == MSA_OK) status = run_steps(o, trainer, &s);
    if (status != MSA_OK) {
        result = cli_complain_library(status);
    } else {
        cli_print("%s\n", s.folder);
        if (s.stage < s.n_stages && cli_interrupted()) result = CLI_INTERRUPTED;
    }
    msa_trainer_destroy(trainer);
    msa_context_destroy(ctx);
    return result;
}

static const cli_option arguments[] = {
    {CLI_FILE, 0, "CONFIG.json", NULL, offsetof(train_options, config), NULL, 0, 0,
     "Model, data, optimizer and stages; docs/training.md explains every key."},
    {0},
};

static const cli_option options[] = {
    CLI_DEVICE_ROW(offsetof(train_options, device)),
    {CLI_COUNT, 0, "threads", "N", offsetof(train_options, threads), NULL, 1, 1024,
     "Threads; every core this process may use unless given."},
    {CLI_COUNT, 0, "steps", "N", offsetof(train_options, steps), NULL, 1, 9007199254740992.0,
     "Stop after N steps of this call, with a checkpoint; the next call goes on."},
    {CLI_FLAG, 0, "fresh", NULL, offsetof(train_options, fresh), NULL, 0, 0,
     "Fail when the output folder has a checkpoint, instead of going on from it."},
    {CLI_FLAG, 'q', "quiet", NULL, offsetof(train_options, quiet), NULL, 0, 0, "Say nothing."},
    {0},
};

const cli_command cli_cmd_train = {
    .name = "train",
    .summary = "Train a model, or go on with a run that was cut off.",
    .details =
        "Everything is in the configuration: the model's shape or the folder it starts from, the "
        "data, the optimizer, and stages such as full attention, warm-up of the index branch and "
        "sparse attention. Checkpoints are model folders, OUTPUT/step-N; msa run opens them. A run "
        "may be ended at any time, by Ctrl-C, which saves, or by force: the same command goes on "
        "from the newest checkpoint with the same bits.\n\n"
        "OUTPUT/log.jsonl holds the figures of every step, OUTPUT/curves.svg draws them. The "
        "folder of the last checkpoint is printed.",
    .examples = "msa train recipe.json\nmsa train recipe.json --device cuda\n"
                "msa run \"$(msa train recipe.json -q)\" 'Once upon a time'",
    .arguments = arguments,
    .options = options,
    .values_bytes = sizeof(train_options),
    .run = run_train,
};
