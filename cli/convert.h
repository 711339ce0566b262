/* msa convert in three parts: the command and its folders (cmd_convert.c), the training run
 * (convert_training.c), the report (convert_report.c).
 *
 *     OUT/                    the result; has a config.json once it is whole
 *     OUT/training/start/     the untrained conversion
 *     OUT/training/step-N/    the trainer's checkpoints
 *     OUT/training/training.json   what `msa train` would read
 */
#ifndef CLI_CONVERT_H
#define CLI_CONVERT_H

#include "command.h"
#include "text.h"

#include "msa/msa.h"

typedef struct convert_options {
    const char *source, *out;
    const char *text, *valid, *device, *dense_layers;
    int64_t block_size, topk, init_blocks, local_blocks;
    int64_t steps, sparse_steps, length, step_tokens, seed, threads, needles, windows;
    double lr, index_lr, gate;
    int32_t dtype; /* index of "bf16|f32" */
    int32_t train_backbone;
} convert_options;

#define CONVERT_PATH_BYTES 4096

/* dir/name in a buffer of CONVERT_PATH_BYTES. Returns path, or NULL after a complaint. */
const char *convert_path(char *path, const char *dir, const char *name);

/* Write a whole file. Returns an exit status, CLI_FAILED after a complaint. */
int convert_write(const char *path, const cli_buffer *text);

/* Functions below return an exit status, CLI_FAILED after a complaint. */

/* The trainer's configuration for these options; all text is added to config. */
int convert_training_config(const convert_options *o, cli_buffer *config);

/* Run the training to its end, or go on with it; folder (CONVERT_PATH_BYTES) becomes the newest
 * checkpoint. CLI_INTERRUPTED after Ctrl-C, with everything saved. */
int convert_train(msa_context *ctx, const char *config, char *folder);

/* CLI_OK when the validation text can be read and is long enough for the report. */
int convert_check_text(const convert_options *o);

/* Measure the dense model, the untrained conversion and the result, print a table, and write
 * conversion.json and CONVERSION.md into the result's folder. untrained NULL: not trained. */
int convert_report(const convert_options *o, msa_context *ctx, const char *untrained);

#endif
