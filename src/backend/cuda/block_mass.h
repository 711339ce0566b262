/* msa_block_mass on a GPU, (M19): cuda_block_mass.cu for every dtype, dim and cache; for packed
 * bf16 keys and blocks of up to 128 block_mass_keys.cu. */
#ifndef MSA_CUDA_BLOCK_MASS_H
#define MSA_CUDA_BLOCK_MASS_H

#include "backend/cuda/gradient_schedule.h"

typedef struct block_mass_job {
    msa_tensor q, k, lse, mass;
    gradient_schedule schedule; /* a unit is a block, behind it every query from its first key on */
    float scale;
    int32_t group; /* G */
} block_mass_job;

msa_status block_mass_keys(msa_context *ctx, const block_mass_job *job);

#endif
