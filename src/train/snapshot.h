/* Checkpoints: a model folder with the trainer's state beside the weights.
 *
 *     OUTPUT/step-N/  config.json, tokenizer files, *.safetensors    opens as a model
 *                     training.json                                  the run's configuration
 *                     trainer.state                                  safetensors:
 *         about        I64 [12]  see snapshot.c
 *         masters m v  F32 [n]   the flat arrays of parameters.h
 *         router_bias  F32 [n]
 *
 * The folder is filled under a hidden name and renamed: a checkpoint that can be seen is whole,
 * whenever the process ends.
 */
#ifndef MSA_TRAIN_SNAPSHOT_H
#define MSA_TRAIN_SNAPSHOT_H

#include "model/buffers.h"
#include "train/optimizer.h"

/* Where a run is; with the parameters and the configuration this decides everything that follows.
 */
typedef struct msa__progress {
    int64_t step, tokens;      /* done */
    int64_t stage, stage_step; /* the stage and its steps that are done */
    int64_t stage_tokens;      /* tokens done when the stage began */
    int64_t skipped;           /* steps skipped one after the other, up to now */
} msa__progress;

typedef struct msa__snapshot {
    msa__parameters *parameters;
    msa__optimizer *optimizer;
    msa__progress *progress;
    const char *output;
    const char *tokenizer;     /* folder; its files are copied */
    const char *config_text;   /* config.json */
    const char *training_text; /* training.json */
    uint64_t data;             /* fingerprint of the dataset */
} msa__snapshot;

/* Write OUTPUT/step-N for the current step; an existing one stays. MSA_EIO, MSA_ENOMEM */
MSA_CHECK_RESULT msa_status msa__snapshot_write(const msa__snapshot *s);

/* Take up the state of OUTPUT/step-N.
 * Errors    MSA_EFORMAT, MSA_EVERSION: not a checkpoint of this model, or of other data */
MSA_CHECK_RESULT msa_status msa__snapshot_read(const msa__snapshot *s, int64_t step);

#endif
