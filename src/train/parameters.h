/* What training changes: the tensors of a checkpoint in flat arrays of the operators' memory.
 *
 * Every array has the same offsets, in this order, so that a norm or an update is one range:
 *
 *     index, undecayed | index, decayed | backbone, undecayed | backbone, decayed
 *
 * Vectors, norms and biases, are not decayed, matrices and the embedding are. A tensor begins at a
 * multiple of 64 elements; the gaps hold zeros and stay zero. Router biases have no gradient and
 * lie beside.
 */
#ifndef MSA_TRAIN_PARAMETERS_H
#define MSA_TRAIN_PARAMETERS_H

#include "model/layout.h"
#include "model/weights.h"
#include "msa/gradient.h"

enum {
    MSA__GROUP_INDEX_UNDECAYED,
    MSA__GROUP_INDEX_DECAYED,
    MSA__GROUP_UNDECAYED,
    MSA__GROUP_DECAYED,
    MSA__N_GROUPS,
    MSA__GROUP_ROUTER_BIAS = MSA__N_GROUPS /* of the other array */
};

typedef struct msa__parameter {
    msa__tensor_spec spec;
    int32_t group;
    int64_t offset, n; /* elements */
} msa__parameter;

typedef struct msa__parameters {
    msa_context *ctx;
    const msa__config *config;
    msa_dtype dtype;      /* of the copies */
    msa__parameter *list; /* in file order */
    int32_t n_list;
    int64_t
        group_begin[MSA__N_GROUPS + 1]; /* group g: elements group_begin[g] .. group_begin[g+1] */
    int64_t n;                          /* elements of an array, gaps included */
    int64_t n_router_bias;

    /* in the operators' memory */
    float *masters, *gradients, *m, *v; /* [n]; the last three only for training */
    void *copies;                       /* [n] dtype; the masters themselves for f32 */
    float *router_bias;                 /* [n_router_bias] */
    float *zeros;                       /* a piece of zeros */

    uint16_t *rounded; /* host memory: values on their way to the copies */

    msa__weights weights;  /* the copies, as in inference; routers are read from the masters */
    msa__weights gradient; /* the gradients in the same roles */
    msa_mlp_gradients **expert_gradients; /* [n_layers][n_experts]; NULL: no experts there */
} msa__parameters;

/* Lay out the tensors of a config and allocate; values are undefined. config is retained.
 *
 * Ownership release with msa__parameters_free, also after a failure
 * Errors    MSA_EUNSUPPORTED a quantised config or a dtype other than f32 and bf16; MSA_ENOMEM,
 *           MSA_EDEVMEM with the bytes */
MSA_CHECK_RESULT msa_status msa__parameters_create(msa__parameters *p, msa_context *ctx,
                                                   const msa__config *config, msa_dtype dtype);
void msa__parameters_free(msa__parameters *p); /* also of a zeroed struct */

/* The three gradients of an MLP, from views of them. */
msa_mlp_gradients msa__mlp_gradients(const msa_mlp_weights *views);

/* Random masters: normal with standard deviation `spread`, over sqrt(2 n_layers) for what is added
 * to the residual; norms at their neutral value; router biases 0. The same on every machine. */
MSA_CHECK_RESULT msa_status msa__parameters_randomize(msa__parameters *p, uint64_t seed,
                                                      float spread);

/* Masters from the weights of a folder of the same shape, f32, bf16 or f16. What the folder has not
 * keeps its value; only the index branch may be missing.
 * Errors    MSA_EUNSUPPORTED a quantised tensor, by name; MSA_EINVAL a tensor that is missing */
MSA_CHECK_RESULT msa_status msa__parameters_load(msa__parameters *p, const msa__weights *from);

/* Elements first .. first+n-1 of one parameter, f32: put writes the master and its copy. */
MSA_CHECK_RESULT msa_status msa__parameters_put(msa__parameters *p, const msa__parameter *one,
                                                int64_t first, int64_t n, const float *values);
MSA_CHECK_RESULT msa_status msa__parameters_get(const msa__parameters *p, const msa__parameter *one,
                                                int64_t first, int64_t n, float *values);

/* Set an array of the operators' memory, such as the gradients, to zero. */
MSA_CHECK_RESULT msa_status msa__parameters_zero(const msa__parameters *p, float *array);

#endif
