/* From a dense model to one with MiniMax Sparse Attention: the index branch is added, untrained.
 *
 * What trains it is a trainer (train.h) that starts from the result: first the index branch alone
 * against full attention, then everything with the selection on. `msa convert` does all of it;
 * docs/conversion.md says what happens and why.
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

#ifdef __cplusplus
}
#endif
#endif
