/* The weights of a model by role, borrowed from the mapped checkpoint files, and their copy on a
 * device. */
#ifndef MSA_MODEL_WEIGHTS_H
#define MSA_MODEL_WEIGHTS_H

#include "model/config.h"

typedef struct msa__layer_weights {
    msa_tensor input_norm, post_attention_norm; /* [H] */
    msa_weight q, k, v, o;                      /* [Hq*D, H], [Hkv*D, H] twice, [H, Hq*D] */
    msa_tensor q_norm, k_norm;                  /* [D]; absent without qk_norm */
    msa_weight index_q, index_k;                /* [Hkv*Di, H], [Di, H]; MSA layers */
    msa_tensor index_q_norm, index_k_norm;      /* [Di] */
    msa_tensor index_k_bias;                    /* [Di]; DSA layers, whose index_q is [Hi*Di, H] */
    msa_weight index_weights;                   /* [Hi, H] and which have no index_q_norm */
    msa_tensor heads_norm;                      /* [Hq*D]; Lightning layers, whose k and v are */
    msa_weight output_gate;                     /* [Hq*D, H] as q and this gate are */
    msa_mlp_weights mlp;                        /* dense layers */
    msa_tensor router;                          /* [E, H] f32 (or bf16); MoE layers */
    msa_tensor router_bias;                     /* [E] f32, optional */
    msa_mlp_weights *experts;                   /* [n_experts], owned by msa__weights */
    msa_mlp_weights shared;                     /* w.data NULL: no shared expert */
} msa__layer_weights;

typedef struct msa__weights {
    msa_tensor embedding;  /* [vocab, H]; of an MXFP8 one the bf16 copy */
    msa_tensor final_norm; /* [H] */
    msa_weight head;       /* [vocab, H]; the embedding when tied */
    msa__layer_weights *layers;
    struct msa__checkpoint *checkpoint; /* the mapped files */
    void *unpacked_embedding;           /* owned copy of an MXFP8 embedding, or NULL */
    size_t unpacked_bytes;
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

/* A copy of the weights in the memory of the context's operators. */
typedef struct msa__device_weights {
    msa__weights weights; /* checkpoint NULL; layers and experts are owned */
    msa_context *ctx;
    void *memory; /* NULL: there is no copy */
    size_t bytes;
} msa__device_weights;

/* Copy every weight. Errors: MSA_EDEVMEM with the sizes, MSA_ENOMEM, MSA_EDEVICE. */
msa_status msa__device_weights_load(msa__device_weights *device, const msa__weights *mapped,
                                    msa_context *ctx, msa_progress_fn progress, void *user);
void msa__device_weights_free(msa__device_weights *device); /* a zeroed one is allowed */

/* The opened model: what msa_model_open returns. */
struct msa_model {
    msa_context *ctx;
    msa__config config;
    msa__weights weights;       /* mapped */
    msa__device_weights device; /* after msa_model_load on a device backend */
    msa_generation_config generation;
    int64_t n_parameters, n_active_parameters, weight_bytes, active_weight_bytes;
};

/* The weights as operators take them: on the device after msa_model_load, else mapped. */
static inline const msa__weights *msa__model_weights(const struct msa_model *model)
{
    return model->device.memory ? &model->device.weights : &model->weights;
}

#endif
