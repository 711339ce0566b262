/* Random weights for made models: the same bytes on every machine. */
#ifndef MSA_MODEL_MAKE_WEIGHTS_H
#define MSA_MODEL_MAKE_WEIGHTS_H

#include "model/layout.h"

/* Distribution of one tensor. */
typedef struct msa__random_tensor {
    uint64_t seed, stream; /* Philox key, and upper half of its counter */
    msa_dtype dtype;       /* f32, bf16 or fp8_e4m3 */
    int32_t scale;         /* E8M0 byte of fp8 */
    uint32_t codes[1021];  /* element by draw: see make_weights.c */
} msa__random_tensor;

/* Choose dtype and spread by the tensor's kind; n_layers scales what is added to the residual. */
void msa__random_tensor_init(msa__random_tensor *random, const msa__config *config,
                             const msa__tensor_spec *spec, uint64_t seed);

/* Elements first..first+n-1; first a multiple of 4. */
void msa__random_fill(const msa__random_tensor *random, int64_t first, int64_t n, void *out);

/* Scale bytes first..first+n-1 of an fp8 tensor; first a multiple of 4. */
void msa__random_fill_scales(const msa__random_tensor *random, int64_t first, int64_t n,
                             uint8_t *out);

#endif
