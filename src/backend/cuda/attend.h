/* Attention over selected blocks: what the files of the operator share. cuda_attend.cu chooses a
 * path and calls one of the launchers below. */
#ifndef MSA_CUDA_ATTEND_H
#define MSA_CUDA_ATTEND_H

#include "backend/cuda/cuda_device.h"

typedef struct block_orders block_orders; /* select.h */

/* Generic (attend_generic.cu): the whole contract, one CTA per (token, group). No workspace. */
msa_status cuda_attend_generic(msa_context *ctx, const msa_attend_args *args);

/* Prefill on Hopper (attend_prefill.cu): bf16 queries, bf16 or fp8 cache, D 64 or 128, Bk 128, G <=
 * 16, rows where the copy engine can reach them. Workspace for pieces of at most 8,192 tokens. */
int cuda_attend_prefill_supports(const msa_attend_args *args);
size_t cuda_attend_prefill_workspace(const msa_attend_args *args);
msa_status cuda_attend_prefill(msa_context *ctx, const msa_attend_args *args, void *workspace);

/* Decode (attend_decode.cu): the same, for batches of at most 16 query tokens a sequence on
 * average. No workspace. With `orders`, which the kernel before writes, the rows are an output. */
int cuda_attend_decode_supports(const msa_attend_args *args);
/* The same for ranking inside, which every CTA of a row does: rows that run in one wave. */
int cuda_attend_decode_ranks(const msa_context *ctx, const msa_attend_args *args);
msa_status cuda_attend_decode(msa_context *ctx, const msa_attend_args *args,
                              const block_orders *orders);

#endif
