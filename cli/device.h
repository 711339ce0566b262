/* Where a model runs: --device, the memory there, and bringing the weights to it. */
#ifndef CLI_DEVICE_H
#define CLI_DEVICE_H

#include "command.h"

#include "msa/msa.h"

/* The row of --device for a command's option table; its value is a const char *. */
#define CLI_DEVICE_ROW(offset)                                                                     \
    {                                                                                              \
        CLI_TEXT, 0, "device", "cpu|cuda[:N]", offset, NULL, 0, 0,                                 \
            "Where the work is done: this machine's processor, or a Hopper GPU, number N or the "  \
            "first one. MSA_BACKEND, or else cpu, unless given."                                   \
    }

#define CLI_INDEX8_ROW(offset)                                                                     \
    {                                                                                              \
        CLI_FLAG, 0, "index8", NULL, offset, NULL, 0, 0,                                           \
            "Keep an eight-bit copy of the index keys and scan that first: the same selections "   \
            "and logits; a GPU reads long prompts faster."                                         \
    }

/* A context for the value of --device (NULL: not given) and of --threads (CLI_UNSET: not given).
 * Returns an exit status, CLI_FAILED and CLI_USAGE after a complaint that says what to do. */
int cli_open_context(const char *device, int64_t threads, msa_context **ctx);

/* Bytes a cache may take where this context's operators work: memory available on the machine, or
 * free on the GPU beside the model's weights, which are not there yet. 0: unknown; less than 0: the
 * weights alone are too large. */
int64_t cli_cache_memory(msa_context *ctx, const msa_model_info *info);

/* "this machine" or "the GPU". */
const char *cli_place(const msa_context *ctx);

/* msa_model_load with a progress bar. */
msa_status cli_load_weights(msa_model *model, int32_t quiet);

#endif
