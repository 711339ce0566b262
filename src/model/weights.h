/* The weights of a model by role, borrowed from the mapped checkpoint files. */
#ifndef MSA_MODEL_WEIGHTS_H
#define MSA_MODEL_WEIGHTS_H

#include "model/config.h"

typedef struct msa__layer_weights {
    msa_tensor input_norm, post_attention_norm; /* [H] */
    msa_weight q, k, v, o;                      /* [Hq*D, H], [Hkv*D, H] twice, [H, Hq*D] */
    msa_tensor q_norm, k_norm;                  /* [D]; absent without qk_norm */
    msa_weight index_q, index_k;                /* [Hkv*Di, H], [Di, H]; MSA layers */
    msa_tensor index_q_norm, index_k_norm;      /* [Di] */
    msa_mlp_weights mlp;                        /* dense layers */
    msa_tensor router;                          /* [E, H] f32 (or bf16); MoE layers */
    msa_tensor router_bias;                     /* [E] f32, optional */
    msa_mlp_weights *experts;                   /* [n_experts], owned by msa__weights */
    msa_mlp_weights shared;                     /* w.data NULL: no shared expert */
} msa__layer_weights;

typedef struct msa__weights {
    msa_tensor embedding;  /* [vocab, H] */
    msa_tensor final_norm; /* [H] */
    msa_weight head;       /* [vocab, H]; the embedding when tied */
    msa__layer_weights *layers;
    struct msa__checkpoint *checkpoint; /* the mapped files */
    msa_allocator allocator;
    int32_t n_layers, n_experts;
} msa__weights;

/* Map dir's safetensors (one file or an index) and find every tensor the config asks for, under its
 * released or its transformers name; fused transformers tensors become views of their halves.
 * Errors    MSA_EIO, MSA_EFORMAT: file, tensor, shape or dtype, and what it must be; MSA_ENOMEM */
msa_status msa__weights_open(msa__weights *weights, const msa__config *config, const char *dir,
                             const msa_allocator *allocator);
void msa__weights_close(msa__weights *weights);

/* Bytes of the weights, and of those one decoded token reads (head included, embedding not). */
void msa__weights_count(const msa__weights *weights, const msa__config *config, int64_t *bytes,
                        int64_t *active_bytes);

/* The opened model: what msa_model_open returns. */
struct msa_model {
    msa_context *ctx;
    msa__config config;
    msa__weights weights;
    msa_generation_config generation;
    int64_t n_parameters, n_active_parameters, weight_bytes, active_weight_bytes;
};

#endif
