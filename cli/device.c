/* --device, its memory and the way there; see device.h. */
#include "device.h"

#include "machine.h"
#include "output.h"
#include "progress.h"

#include <stdlib.h>
#include <string.h>

/* cpu, cuda or cuda:N into the context's arguments; 0: another word. */
static int parse_device(const char *word, msa_context_args *args)
{
    char *end;
    if (strcmp(word, "cpu") == 0) {
        args->backend = "cpu";
        return 1;
    }
    if (strncmp(word, "cuda", 4) != 0) return 0;
    args->backend = "cuda";
    if (!word[4]) return 1;
    if (word[4] != ':' || word[5] < '0' || word[5] > '9') return 0;
    long number = strtol(word + 5, &end, 10);
    args->device = (int32_t)number;
    return !*end && number <= 1023;
}

int cli_open_context(const char *device, int64_t threads, msa_context **ctx)
{
    msa_context_args args;
    msa_context_args_init(&args);
    if (device && !parse_device(device, &args)) {
        cli_complain("--device = \"%.64s\", must be cpu, cuda or cuda:N", device);
        return CLI_USAGE;
    }
    if (threads != CLI_UNSET) args.n_threads = (int32_t)threads;
    msa_status status = msa_context_create(ctx, &args);
    if (status == MSA_OK) return CLI_OK;
    if (!device || strncmp(device, "cuda", 4) != 0) return cli_complain_library(status);
    return cli_complain("%s; without --device the processor does the work, msa doctor shows what "
                        "this machine has",
                        msa_last_error());
}

int64_t cli_cache_memory(msa_context *ctx, const msa_model_info *info)
{
    int64_t free_bytes, total_bytes;
    cli_machine machine;
    if (msa_context_uses_device_memory(ctx)) {
        if (msa_memory_info(ctx, &free_bytes, &total_bytes) != MSA_OK) return 0;
        return free_bytes - info->weight_bytes;
    }
    cli_read_machine(&machine);
    return machine.memory_available;
}

const char *cli_place(const msa_context *ctx)
{
    return msa_context_uses_device_memory(ctx) ? "the GPU" : "this machine";
}

static void watch_load(void *user, int64_t done, int64_t total)
{
    cli_progress_update(user, done >> 20, total >> 20);
}

msa_status cli_load_weights(msa_model *model, int32_t quiet)
{
    cli_progress bar;
    cli_progress_begin(&bar, "loading", "MiB", quiet);
    msa_status status = msa_model_load(model, watch_load, &bar);
    cli_progress_clear();
    return status;
}
