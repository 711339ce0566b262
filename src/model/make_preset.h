/* The shapes of models that msa_model_make writes. */
#ifndef MSA_MODEL_MAKE_PRESET_H
#define MSA_MODEL_MAKE_PRESET_H

#include "model/buffers.h"

typedef struct msa__preset {
    const char *name, *description;
    int32_t hidden_size, n_layers;
    int32_t n_full_layers;  /* the first ones, without an index branch */
    int32_t n_dense_layers; /* the first ones, without experts */
    int32_t n_q_heads, n_kv_heads, head_dim;
    int32_t block_size, topk_blocks;
    int32_t n_experts, n_experts_per_token;
    int32_t expert_width, shared_width, dense_width;
    int32_t max_positions;
    int32_t mxfp8;
    const char *attention; /* keys of other kinds of attention, layer_types among them, or NULL */
} msa__preset;

extern const msa__preset msa__presets[];
extern const int32_t msa__n_presets;

/* Write a folder of this shape; see msa_model_make. */
MSA_CHECK_RESULT msa_status msa__preset_make(const char *dir, const msa__preset *preset,
                                             uint64_t seed, msa_progress_fn progress, void *user);

/* config.json and generation_config.json in the released layout. */
void msa__preset_config(const msa__preset *preset, msa__text *text);
void msa__preset_generation(msa__text *text);

#endif
