/* Training: from a configuration to a model folder, and what a model's selection captures.
 *
 * docs/training.md describes the configuration, key by key. A trainer makes one step a call;
 * between two calls nothing is in flight, and everything that a step needs lies in the newest
 * checkpoint or in the configuration: a run that was cut off anywhere goes on with the same bits.
 */
#ifndef MSA_TRAIN_H
#define MSA_TRAIN_H

#include "msa/model.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- what a selection captures ------------------------------------------------------------ */

/* Means over the queries and groups of a layer that had a choice: more visible blocks than K.
 *
 * Math      (M19), with w the mass that full attention puts on a block, averaged over the heads of
 * a group; I the selected blocks; I* the K best by w. A plain name compares with any I*, _forced
 * with the best I* that contains the forced blocks. Of a DSA layer: tokens in place of blocks, one
 * row a query, at most 16 queries of a sequence
 */
typedef struct msa_recall {
    int64_t n_rows; /* queries times groups, or MoBA's heads, with a choice; 0: the means are 1 */
    double captured_mass;
    double block_recall, score_recall, oracle_ratio;
    double block_recall_forced, score_recall_forced, oracle_ratio_forced;

    /* Eight-bit index keys of an MSA layer, when asked for: at most 32 queries of a sequence */
    int64_t n_scanned;             /* rows looked at; 0: what follows is 0 */
    double rescored, rescored_max; /* share of a row's blocks that the exact scan leaves open, (Q5) */
    double rescored_blocks;        /* their number */
    double rescored_random;        /* the same of Gaussian queries and keys */
    double fp8_recall;             /* share of the selection that fp8 index keys would select too */
} msa_recall;

typedef struct msa_recall_args {
    uint32_t struct_size;
    uint32_t flags;
    msa_model *model;
    const int32_t *tokens; /* [n_tokens] one sequence */
    int64_t n_tokens;
    msa_dtype dtype;    /* of activations, keys and index keys: f32 or bf16 */
    int32_t dense;      /* 1: layers attend to everything, as in warm-up; 0: to the selection */
    msa_recall *layers; /* out [n_layers of the model]; layers without selection have n_rows -1 */
    int32_t scan8;      /* 1: look at eight-bit index keys too */
    int32_t reserved;
} msa_recall_args;
MSA_ARGS_INIT(msa_recall_args)

/* Read a sequence with the model and compare each layer's selection with full attention.
 *
 * The model's context does the work; the model is loaded there if it is not yet. Cost: a prefill
 * with full attention, twice over.
 * Errors    MSA_EINVAL argument, value and rule; MSA_ENOMEM, MSA_EDEVMEM; MSA_EUNSUPPORTED a
 * backend without msa_block_mass
 */
MSA_API MSA_CHECK_RESULT msa_status msa_recall_measure(const msa_recall_args *args);

/* ---- training ----------------------------------------------------------------------------- */

typedef struct msa_trainer msa_trainer;

typedef struct msa_trainer_args {
    uint32_t struct_size;
    uint32_t flags;
    const char *config_path; /* a JSON file; or */
    const char *config_text; /* the text itself, NUL-terminated; borrowed for the call */
    int32_t fresh;           /* 1: a new run, fail when the output folder has a checkpoint */
    int32_t reserved;
    msa_progress_fn progress; /* of tokenizing text that is new, in bytes; may be NULL */
    void *user;
} msa_trainer_args;
MSA_ARGS_INIT(msa_trainer_args)

/* Read the configuration, and take up the newest checkpoint of its output folder where there is
 * one.
 *
 * Ownership *out is owned: msa_trainer_destroy; ctx is retained
 * Errors    MSA_EIO, MSA_EFORMAT file, key, value and rule; MSA_EUNSUPPORTED what this backend or
 *           trainer cannot train, by name; MSA_ENOMEM, MSA_EDEVMEM with the bytes
 */
MSA_API MSA_CHECK_RESULT msa_status msa_trainer_create(msa_trainer **out, msa_context *ctx,
                                                       const msa_trainer_args *args);
MSA_API void msa_trainer_destroy(msa_trainer *trainer); /* NULL is allowed */

/* Where a run is: after a step, or after create. */
typedef struct msa_trainer_state {
    uint32_t struct_size;
    uint32_t flags;
    int64_t step, n_steps;    /* steps done, and those of the whole run as far as it is known */
    int64_t tokens, n_tokens; /* the same in tokens */
    int32_t stage, n_stages;  /* counted from 0; stage = n_stages: done */
    const char *stage_name;   /* borrowed from the trainer */
    double loss;              /* mean cross-entropy of the step in nats; NaN before the first step
                                 and while the backbone is frozen */
    double index_loss;        /* (M16), mean over the layers with one; NaN where nothing was measured */
    double validation_loss;   /* newest; NaN: none yet */
    double grad_norm, index_grad_norm, lr, index_lr;
    double seconds; /* of the step */
    double tokens_per_second;
    int32_t skipped;    /* 1: the step's gradients were not finite, nothing was changed */
    int32_t saved;      /* 1: the step ended with a checkpoint */
    const char *folder; /* of the newest checkpoint, borrowed; NULL: none */
} msa_trainer_state;
MSA_ARGS_INIT(msa_trainer_state)

/* Make one step: micro-batches, clipping, AdamW, router bias; and what is due after it: a log line,
 * validation, the gate of the stage, a checkpoint, curves. After the last stage it does nothing.
 *
 * Errors    as create; MSA_EINVAL too many steps in a row whose gradients are not finite
 */
MSA_API MSA_CHECK_RESULT msa_status msa_trainer_step(msa_trainer *trainer);

/* Write a checkpoint now, unless the newest one is of this step. */
MSA_API MSA_CHECK_RESULT msa_status msa_trainer_save(msa_trainer *trainer);

MSA_API MSA_CHECK_RESULT msa_status msa_trainer_get_state(const msa_trainer *trainer,
                                                          msa_trainer_state *state);

#ifdef __cplusplus
}
#endif
#endif
