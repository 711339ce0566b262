/* The configuration of a training run: docs/training.md, key by key. */
#ifndef MSA_TRAIN_CONFIG_H
#define MSA_TRAIN_CONFIG_H

#include "model/json.h"
#include "train/optimizer.h"
#include "train/walk.h"

#define MSA__MAX_STAGES 16

typedef enum msa__schedule {
    MSA__SCHEDULE_COSINE,
    MSA__SCHEDULE_WSD,
    MSA__SCHEDULE_CONSTANT
} msa__schedule;

typedef struct msa__stage {
    const char *name;
    int32_t attention; /* msa__phase */
    int32_t freeze_backbone;
    int64_t steps, tokens; /* how long; one of them in the file, both afterwards */
    int64_t step_tokens, micro_tokens, length;
    double lr, index_lr;
    int32_t schedule; /* msa__schedule */
    int64_t warmup_steps;
    double final_lr;   /* share of lr that is left at the end */
    double decay_part; /* wsd: share of the steps that decays */
    double gate;       /* mean oracle ratio of every layer that ends the stage; 0: none */
} msa__stage;

typedef struct msa__train_config {
    const msa__json *root;
    const char *output;
    int64_t seed;
    int32_t dtype;                 /* msa_dtype: f32 0, bf16 1 */
    int32_t keep;                  /* msa__keep */
    const msa__json *model_config; /* an object; NULL: of init_from */
    const char *init_from;         /* NULL: random */
    double init_spread;
    const msa__json *data;
    const char *tokenizer;            /* of data */
    const msa__json *validation_data; /* NULL: none */
    int64_t validation_every, validation_batches;
    int32_t recall; /* 1: validation measures recall, too */
    msa__adamw adamw;
    double index_lambda;
    int32_t index_mean;   /* 1: over layers; 0: their sum */
    int32_t index_detach; /* 0: the ablation without stop-gradient */
    double bias_rate;
    int64_t checkpoint_every, checkpoints_kept;
    int64_t log_every;
    int64_t max_skipped;
    double peak_tflops; /* 0: unknown, no MFU */
    int32_t n_stages;
    msa__stage stages[MSA__MAX_STAGES];
} msa__train_config;

/* Parse; strings and objects are borrowed from the document, which the config owns.
 * Errors    MSA_EFORMAT key, value and rule, unknown keys too; MSA_EIO, MSA_ENOMEM */
MSA_CHECK_RESULT msa_status msa__train_config_parse(msa__train_config *config, const char *name,
                                                    const char *text, size_t bytes);
void msa__train_config_free(msa__train_config *config); /* also of a zeroed struct */

/* Learning rate over a stage as a share of its peak, step counted from 0. */
double msa__schedule_share(const msa__stage *stage, int64_t step);

#endif
