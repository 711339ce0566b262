/* Selection through the eight-bit copy of the index keys: the paths that use it. */
#ifndef MSA_CUDA_SELECT8_H
#define MSA_CUDA_SELECT8_H

#include "backend/cuda/cuda_device.h"

/* Many query tokens; what does not fit is selected from the keys. */
int cuda_select8_prefill_fits(const msa_context *ctx, const msa_select_args *args);
size_t cuda_select8_prefill_workspace(const msa_context *ctx, const msa_select_args *args);
msa_status cuda_select8_prefill(msa_context *ctx, const msa_select_args *args, void *workspace);

/* Few query tokens a sequence, over long contexts. */
int cuda_select8_decode_fits(const msa_context *ctx, const msa_select_args *args);
size_t cuda_select8_decode_workspace(const msa_context *ctx, const msa_select_args *args);
msa_status cuda_select8_decode(msa_context *ctx, const msa_select_args *args, void *workspace);

#endif
