/* Which tensors a checkpoint has: one table of names, shapes and roles for everything that reads,
 * counts or writes them. */
#ifndef MSA_MODEL_LAYOUT_H
#define MSA_MODEL_LAYOUT_H

#include "model/config.h"

typedef enum msa__tensor_kind {
    MSA__KIND_NORM,        /* vector of a norm */
    MSA__KIND_BIAS,        /* vector that is added */
    MSA__KIND_MATRIX,      /* [out, in], quantised in MXFP8 checkpoints */
    MSA__KIND_ROUTER,      /* [E, H], f32 in released checkpoints */
    MSA__KIND_ROUTER_BIAS, /* [E], f32 */
    MSA__KIND_EMBEDDING,
    MSA__KIND_HEAD
} msa__tensor_kind;

/* Part of a fused transformers tensor that a role is. */
typedef enum msa__part { MSA__PART_WHOLE, MSA__PART_GATE, MSA__PART_UP } msa__part;

/* One role in a layer. Names follow "….layers.L."; a %d is the expert. */
typedef struct msa__layer_role {
    const char *released;
    const char *transformers; /* the tensor that holds it there, fused where part says so */
    msa__part part;
    msa__tensor_kind kind;
    int32_t per_expert;
    size_t slot; /* in msa__layer_weights; per_expert: in msa_mlp_weights */
} msa__layer_role;

extern const msa__layer_role msa__layer_roles[];
extern const int32_t msa__n_layer_roles;

/* Shape of a role in a layer, columns 0 for a vector; rows 0: this layer does not have it. */
void msa__role_shape(const msa__config *config, const msa__layer_role *role, int32_t layer,
                     int64_t *rows, int64_t *columns);

/* A role's name with its expert filled in. */
void msa__role_name(const char *pattern, int32_t expert, char *name, size_t bytes);

/* What a family's released tensor names begin with: "language_model." or nothing. */
const char *msa__layout_prefix(const msa__config *config);

/* One tensor of the released layout. */
typedef struct msa__tensor_spec {
    char name[160];
    msa__tensor_kind kind;
    int32_t layer, expert; /* -1: none */
    int64_t rows, columns; /* columns 0: a vector */
    size_t slot;           /* of the role; 0 without layer */
} msa__tensor_spec;

/* Call visit for every text tensor of the released layout, in file order; stops on its failure. */
typedef msa_status (*msa__tensor_visit)(void *user, const msa__tensor_spec *spec);
MSA_CHECK_RESULT msa_status msa__layout_visit(const msa__config *config, msa__tensor_visit visit,
                                              void *user);

/* The view of a tensor in a set of weights; data NULL: that set has none. */
struct msa__weights;
const msa_tensor *msa__weights_view(const struct msa__weights *weights,
                                    const msa__tensor_spec *spec);

/* Its E8M0 exponents where it is MXFP8; data NULL: it is not. */
const msa_tensor *msa__weights_scales(const struct msa__weights *weights,
                                      const msa__tensor_spec *spec);

/* 1: the tensor is F8_E4M3 with scales in a checkpoint of this config. */
int32_t msa__spec_quantized(const msa__config *config, const msa__tensor_spec *spec);

typedef struct msa__counts {
    int64_t n_parameters, n_active_parameters; /* active: without embedding and head */
    int64_t weight_bytes, active_weight_bytes; /* active: head included, embedding not */
} msa__counts;

/* What a released checkpoint of this config has: bf16 or MXFP8, router and its bias f32. */
void msa__layout_count(const msa__config *config, msa__counts *counts);

#endif
