/* A training run: everything it holds, and what the trainer's files share. */
#ifndef MSA_TRAIN_TRAINER_H
#define MSA_TRAIN_TRAINER_H

#include "data/prefetch.h"
#include "msa/train.h"
#include "train/balance.h"
#include "train/recall.h"
#include "train/snapshot.h"
#include "train/train_config.h"
#include "train/train_log.h"

struct msa_trainer {
    msa_context *ctx;
    msa__train_config config;
    msa__config model;
    char *config_text, *training_text; /* config.json and training.json, owned: msa_free */
    msa__dataset *data, *validation;
    msa__parameters parameters;
    msa__optimizer optimizer;
    msa__balance balance;
    msa__log *log;

    /* of the current stage */
    int32_t stage_is_open;
    msa__walk walk;
    msa__recall_probe probe;
    msa__prefetch *batches; /* of training */
    msa__batches held_out;  /* of validation */
    float *rows;            /* [micro_tokens * max(1, Hkv)] downloads */

    msa__progress progress;
    msa_trainer_state state;
    int64_t saved_step; /* of the newest checkpoint, -1: none */
    char saved_folder[1024];
    double *index_loss; /* [n_layers] of the newest step that measured it */
    msa_recall *recall; /* [n_layers] */
    double *column;     /* [n_layers] of the log */
    double worst_load, flops;
};

static inline const msa__stage *msa__trainer_stage(const msa_trainer *t)
{
    return &t->config.stages[t->progress.stage];
}

/* Buffers and the walk of the current stage. */
MSA_CHECK_RESULT msa_status msa__stage_open(msa_trainer *t);
void msa__stage_close(msa_trainer *t);

/* Losses and gradients of the step's micro-batches, then the update. */
MSA_CHECK_RESULT msa_status msa__step_run(msa_trainer *t);

/* Loss on held-out batches, and recall; into the log. */
MSA_CHECK_RESULT msa_status msa__validate(msa_trainer *t);

/* 1: every MSA layer's oracle ratio, as last measured, reaches the gate of the stage. */
int32_t msa__gate_is_passed(const msa_trainer *t);

/* Draw OUTPUT/curves.svg from the log. MSA_EIO, MSA_ENOMEM */
MSA_CHECK_RESULT msa_status msa__curves_draw(const char *output);

/* Mean of a downloaded float array's first n elements times n: their sum in double. */
MSA_CHECK_RESULT msa_status msa__sum_rows(msa_trainer *t, const float *rows, int64_t n,
                                          double *sum);

#endif
