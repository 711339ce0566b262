/* A tiny model with all that training meets, and packed batches for it. */
#ifndef MSA_TESTS_TRAIN_FIXTURE_H
#define MSA_TESTS_TRAIN_FIXTURE_H

#include "train/walk.h"

#define TINY_VOCAB   64
#define TINY_LAYERS  3
#define TINY_TOKENS  96 /* of a batch */
#define TINY_TARGETS 93 /* three sequences, the last token of each predicts nothing */

/* config.json of an M3-shaped model: layer 0 full attention and a dense MLP, 1 and 2 MSA (blocks of
 * 16, K = 2) with experts and a shared one; head norms, half of the dims rotated. */
extern const char *const tiny_config;

/* The same without experts, head norms and MSA, tied; window layers: sliding, window control. */
extern const char *const tiny_window_config;

/* The same with MoBA layers, per head and per group; blocks of 16, K = 2. */
extern const char *const tiny_moba_config;

/* The same in blocks of two pages, K = 1. */
extern const char *const tiny_moba_pages_config;

/* The same with Lightning layers, first and last. */
extern const char *const tiny_lightning_config;

/* The same with DSA layers: three index heads, 12 tokens. */
extern const char *const tiny_dsa_config;

/* The backend of MSA_TEST_BACKEND, else cpu. Where it cannot be had the program is skipped. */
const char *tiny_backend(void);

typedef struct tiny {
    msa_context *ctx;
    msa__config config;
    msa__parameters parameters;
    msa__walk walk;
} tiny;

/* A context and the config; then random weights, with norms and biases away from their neutral
 * values, and a walk. */
void tiny_open(tiny *t, const char *config, const char *backend, int32_t n_threads);
void tiny_fill(tiny *t, msa_dtype dtype, msa__keep keep);

/* Both. */
void tiny_create(tiny *t, const char *config, const char *backend, int32_t n_threads,
                 msa_dtype dtype, msa__keep keep);
void tiny_destroy(tiny *t);

/* TINY_TOKENS fixed tokens in sequences of 10, 50 and 36. */
const msa__walk_batch *tiny_batch(void);

/* Losses of a batch by a walk up, weighted as the gradients are. */
typedef struct tiny_loss {
    double language, index;
} tiny_loss;
tiny_loss tiny_forward(tiny *t, const msa__walk_mode *mode);

/* Gradients from zero: walk up, loss, walk down. */
void tiny_gradients(tiny *t, const msa__walk_mode *mode);

/* A copy of n floats of the operators' memory, to be freed. */
float *tiny_copy(const tiny *t, const float *from, int64_t n);

#endif
