/* Checks the gradients of the attention operators share: packed views, row numbers, a selection and
 * its reverse index. */
#ifndef MSA_OPS_CHECK_SELECTION_H
#define MSA_OPS_CHECK_SELECTION_H

#include "msa/gradient.h"
#include "ops/check_attention.h"
#include "ops/check_gradient.h"

/* msa__check_kv of a view that must be packed, in lanes of f32 or bf16. */
msa_status msa__check_packed_kv(const msa__check *at, msa_kv_view *kv, const int32_t *cu_seqlens_q,
                                const msa__kv_shape *shape);

/* f32 [n_rows, n_heads], read. */
msa_status msa__check_row_numbers(const msa__check *at, const char *name, const msa_tensor *t,
                                  int64_t n_rows, int64_t n_heads);

/* Numbers of blocks that a reverse index of the view has room for. */
int64_t msa__reverse_capacity(const msa_kv_view *kv, int32_t block_size);

/* Shapes of an index of blocks [T, Hkv, K]; is_output: it will be written. */
msa_status msa__check_reverse_shapes(const msa__check *at, const msa_reverse_index *index,
                                     const msa_tensor *blocks, const msa_kv_view *kv,
                                     int32_t block_size, int32_t is_output);

/* blocks [T, n_kv_heads, K] and their index, shapes and, on the host, contents: the index must be
 * the transpose of checked rows. */
msa_status msa__check_selection(const msa__check *at, const msa_tensor *blocks,
                                const msa_reverse_index *index, const msa_kv_view *kv,
                                const int32_t *cu_seqlens_q, int32_t block_size, int64_t n_tokens,
                                int64_t n_kv_heads);

#endif
