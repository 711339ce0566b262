/* A training run on the terminal: what `msa train` and `msa convert` share. */
#ifndef CLI_TRAINING_H
#define CLI_TRAINING_H

#include "msa/train.h"

/* Open a trainer for args, whose progress is filled in, with a bar for text that must be tokenized.
 * Ownership *trainer is owned: msa_trainer_destroy */
msa_status cli_training_open(msa_trainer **trainer, msa_context *ctx, msa_trainer_args *args,
                             int32_t quiet);

/* Steps until the end, n_steps of them (CLI_UNSET: no limit), or Ctrl-C; the last two leave a
 * checkpoint too. Tells about steps that saved or were skipped. *state is the newest. */
msa_status cli_training_run(msa_trainer *trainer, int64_t n_steps, int32_t quiet,
                            msa_trainer_state *state);

#endif
