/* The parts of an M3-shaped config.json that have files of their own; both layouts, see config.c.
 */
#ifndef MSA_MODEL_CONFIG_M3_H
#define MSA_MODEL_CONFIG_M3_H

#include "model/config.h"
#include "model/json_optional.h"

#define MSA__CONFIG_MAX_WIDTH (1 << 18) /* with the other limits every parameter count fits int64  \
                                         */

/* The index branch of MSA layers, and which layers have one. The transformers layout, which Llama
 * and Qwen3 with an index branch share; the released layout. */
msa_status msa__config_read_index(msa__config *config, const msa__json *text);
msa_status msa__config_read_released_index(msa__config *config, const msa__json *text);

/* Dense MLPs and mixtures of experts. */
msa_status msa__config_read_moe(msa__config *config, const msa__json *text, int32_t flattened);

/* quantization_config, in root or in text: none or MXFP8. */
msa_status msa__config_read_quantization(msa__config *config, const msa__json *root,
                                         const msa__json *text);

/* A list of n_layers entries, each off (0: dense attention or MLP) or on (1: MSA or MoE), as
 * integers where off is NULL, else as two words. */
msa_status msa__config_read_layer_list(const msa__json *object, const char *key, int32_t n_layers,
                                       const char *off, const char *on, uint8_t *out,
                                       size_t stride);

static inline msa_status msa__config_need_bool(const msa__json *object, const char *key,
                                               int32_t *out)
{
    const msa__json *value;
    MSA_TRY(msa__json_need(object, key, &value));
    return msa__json_bool(value, out);
}

/* What M3 has and the transformers layout may leave out. */
static inline msa_status msa__config_trait(const msa__json *text, const char *key,
                                           int32_t flattened, int32_t *out)
{
    return flattened ? optional_bool(text, key, 1, out) : msa__config_need_bool(text, key, out);
}

#endif
