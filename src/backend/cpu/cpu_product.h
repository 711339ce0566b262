/* Blocks of weight rows times packed activations: what linear layers and experts are made of.
 *
 * Activations are packed into panels of 16 tokens, one piece of K_CHUNK inputs after the other, so
 * that a block of weight rows stays in the second-level cache while it meets every panel:
 *
 *     packed   [input chunk][panel][inputs of the chunk][16]        (bf16: pairs, as in kernels.h)
 *
 * Products run in bf16 when both sides are exact in it (bf16 activations; bf16 or MXFP8 weights),
 * in f32 otherwise. Neither the choice nor any sum depends on the number of tokens.
 */
#ifndef MSA_CPU_PRODUCT_H
#define MSA_CPU_PRODUCT_H

#include "backend/cpu/isa/kernels.h"
#include "msa/layer.h"

#define MSA__K_CHUNK 2048

/* Tokens that are multiplied at once, and the rows of a work item: bounds of all scratch memory. */
#define MSA__PRODUCT_TOKENS 512
#define MSA__PRODUCT_ROWS   128

int32_t msa__product_is_bf16(msa_dtype x_dtype, const msa_weight *weight);

/* Bytes of n_panels panels of k inputs. */
size_t msa__packed_bytes(int32_t is_bf16, int64_t k, int64_t n_panels);

/* First byte of input l (even) of a panel. */
void *msa__packed_at(void *packed, int32_t is_bf16, int64_t k, int64_t n_panels, int64_t panel,
                     int64_t l);

/* Rows of a work item for n_rows outputs: a multiple of 32 that keeps every thread busy. Fewer
 * tokens mean smaller items: their cost is reading the weights. */
int64_t msa__product_rows(int64_t n_rows, int64_t n_tokens, int32_t n_threads);

/* Bytes of scratch for converted weights. */
size_t msa__product_scratch_bytes(void);

/* c[i * ldc + t] = sum_l w[row + i, l] x[t, l] for n_rows <= MSA__PRODUCT_ROWS rows and the tokens
 * of ceil(n_tokens / 16) panels; columns beyond n_tokens hold finite or garbage values. */
void msa__product(const msa__cpu_kernels *kernels, int32_t is_bf16, const msa_weight *weight,
                  int64_t row, int64_t n_rows, void *packed, int64_t n_tokens, float *c,
                  int64_t ldc, void *scratch);

#endif
