/* The keys of config.json that Llama and Qwen3 have in common, and those of M3 not. */
#ifndef MSA_MODEL_CONFIG_GQA_H
#define MSA_MODEL_CONFIG_GQA_H

#include "model/config.h"

/* Norms, RoPE, activation and MLP of a dense GQA model whose shape has been read. */
msa_status msa__config_read_gqa(msa__config *config, const msa__json *root);

/* layer_types, where present, says full_attention everywhere. */
msa_status msa__config_check_full_layers(const msa__config *config, const msa__json *root);

#endif
