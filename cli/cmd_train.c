/* msa train: train a model as a configuration says, or go on with a run that was cut off. */
#include "command.h"
#include "device.h"
#include "interrupt.h"
#include "output.h"
#include "training.h"

typedef struct train_options {
    const char *config, *device;
    int64_t threads, steps;
    int32_t fresh, quiet;
} train_options;

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
    msa_trainer_args args;
    msa_trainer_args_init(&args);
    args.config_path = o->config;
    args.fresh = o->fresh;
    msa_status status = cli_training_open(&trainer, ctx, &args, o->quiet);
    if (status == MSA_OK) status = cli_training_run(trainer, o->steps, o->quiet, &s);
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
