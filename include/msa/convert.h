/* Model folders in, model folders out: msa_convert gives a dense model the index branch of MiniMax
 * Sparse Attention, untrained; msa_quantize gives a model MXFP8 weights.
 *
 * What trains the index branch is a trainer (train.h) that starts from the result: first the index
 * branch alone against full attention, then everything with the selection on. `msa convert` does
 * all of it; docs/conversion.md says what happens and why, docs/quantization.md for MXFP8.
 */
#ifndef MSA_CONVERT_H
#define MSA_CONVERT_H

#include "msa/model.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct msa_convert_args {
    uint32_t struct_size;
    uint32_t flags;
    const char *source_dir; /* dense: Llama, Qwen3, or MiniMax-M3's shape without selection */
    const char *out_dir;    /* created, or an empty folder */
    /* Layers that keep full attention, ascending; NULL: the first ceil(layers / 8), at most 3. */
    const int32_t *dense_layers;
    int32_t n_dense_layers;
    int32_t block_size;     /* Bk, a power of two in 16..256; 0: 128 */
    int32_t topk_blocks;    /* K, 1..64; 0: 16 */
    int32_t n_init_blocks;  /* forced blocks at the start; n_init + n_local <= K */
    int32_t n_local_blocks; /* forced newest blocks; 0: 1 */
    int32_t reserved;
} msa_convert_args;
MSA_ARGS_INIT(msa_convert_args)

/* Write the model with an untrained index branch.
 *
 * Weights   those of the source keep their bits. The index query of a group begins as the mean of
 * its query heads' projections, the index key as the mean of all key heads'; index norms are the
 * source's q and k norms, or neutral. Where K blocks hold every visible token the result computes
 * exactly what the source does. Config    of M3's shape: the released sparse_attention_config.
 * Otherwise the source's keys, the flattened index_* keys and layer_types, and a model_type of its
 * own (msa_llama, msa_qwen3), which software that knows only the dense family refuses. Files
 * tokenizer and generation settings are copied; config.json is written last Errors MSA_EUNSUPPORTED
 * what cannot be converted, by name: quantised weights, a model that selects already, vision parts,
 * group sizes above 32, and what does not run here at all; MSA_EINVAL argument, value and rule;
 * MSA_EIO; MSA_EFORMAT; MSA_ENOMEM
 */
MSA_API MSA_CHECK_RESULT msa_status msa_convert(const msa_convert_args *args,
                                                msa_progress_fn progress, void *user);

/* What a tensor is for. */
enum {
    MSA_QUANTIZE_ATTENTION,
    MSA_QUANTIZE_INDEX,  /* index branch: projections; its norms are among the others */
    MSA_QUANTIZE_MLP,    /* of dense layers, and shared experts */
    MSA_QUANTIZE_EXPERT, /* routed experts */
    MSA_QUANTIZE_EMBEDDING,
    MSA_QUANTIZE_HEAD,
    MSA_QUANTIZE_OTHER, /* norms, biases, routers: never quantised */
    MSA_QUANTIZE_KINDS
};

typedef struct msa_quantize_kind {
    int64_t n_quantized, n_kept; /* tensors */
    int64_t source_bytes, bytes; /* before and after, scales included */
    double largest_error;        /* of a quantised tensor: |W - Q| / |W|, Frobenius norms */
} msa_quantize_kind;

typedef struct msa_quantize_info {
    uint32_t struct_size;
    uint32_t flags;
    int64_t source_bytes, bytes; /* of all tensors */
    msa_quantize_kind kinds[MSA_QUANTIZE_KINDS];
} msa_quantize_info;
MSA_ARGS_INIT(msa_quantize_info)

typedef struct msa_quantize_args {
    uint32_t struct_size;
    uint32_t flags;
    const char *source_dir; /* MiniMax-M3's shape; weights in f32, bf16 or f16 */
    const char *out_dir;    /* created, or an empty folder */
    /* Modules that keep their dtype: a name, or part of one between dots, as in ignored_layers:
     * "index_q_proj", "layers.0.self_attn". NULL: none. */
    const char *const *keep;
    int32_t n_keep;
    int32_t embedding; /* 1: the embedding and the output head, too; MiniMax keeps them bf16 */
} msa_quantize_args;
MSA_ARGS_INIT(msa_quantize_args)

/* Write the model with MXFP8 weights, in the layout of MiniMax's MXFP8 release.
 *
 * Math      (L8); groups of 32 along the inputs with an E8M0 scale each, the smallest power of two
 *           at which no value saturates; codes round to nearest even
 * Weights   matrices become X.weight (F8_E4M3) and X.weight_scale_inv (U8). Norms, biases, routers,
 *           matrices whose inputs are no multiple of 32, and what the arguments keep, keep their
 *           bits. Names are the released ones.
 * Config    the source's members and quantization_config
 * Files     tokenizer and generation settings are copied; config.json is written last
 * progress  in bytes of the result; may be NULL
 * info      filled; may be NULL
 * Errors    MSA_EUNSUPPORTED another family, quantised weights, a tensor that is not of the text
 *           model; MSA_EINVAL argument, value and rule; MSA_EFORMAT NaN or infinity, and where;
 *           MSA_EIO; MSA_ENOMEM
 */
MSA_API MSA_CHECK_RESULT msa_status msa_quantize(const msa_quantize_args *args,
                                                 msa_progress_fn progress, void *user,
                                                 msa_quantize_info *info);

#ifdef __cplusplus
}
#endif
#endif
