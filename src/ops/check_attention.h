/* Checks the attention operators share: the batch's keys and values, head groups, outputs. */
#ifndef MSA_OPS_CHECK_ATTENTION_H
#define MSA_OPS_CHECK_ATTENTION_H

#include "ops/check.h"

/* What the operator's other arguments say about the view. */
typedef struct msa__kv_shape {
    int64_t n_tokens;   /* T, rows that cu_seqlens_q divides */
    int64_t n_kv_heads; /* Hkv */
    int64_t head_dim;   /* D of k and v; 0: the operator uses neither */
    int32_t keys_only;  /* 1: it does not use v */
    int64_t index_dim;  /* Di of k_index; 0: the operator does not use it */
    int32_t block_size; /* Bk */
} msa__kv_shape;

/* Complete the view's scales and check its lanes, its sequences and cu_seqlens_q: every block that
 * a token may see lies inside the pool or the packed rows, and T <= S for every sequence. */
msa_status msa__check_kv(const msa__check *at, msa_kv_view *kv, const int32_t *cu_seqlens_q,
                         const msa__kv_shape *shape);

/* The same for an operator that uses only k, which also says Hkv and D. */
msa_status msa__check_keys(const msa__check *at, msa_kv_view *kv, const int32_t *cu_seqlens_q,
                           int64_t n_tokens, int32_t block_size);

/* Mean keys of a view that msa__check_keys has passed. */
msa_status msa__check_means(const msa__check *at, const msa_kv_view *kv, const msa_tensor *means,
                            int32_t block_size);

/* The eight-bit copy of a checked paged view's k_index. */
msa_status msa__check_index8(const msa__check *at, const msa_kv_view *kv, const msa_index8 *index8);

/* All that msa_select and msa_attend ask of their arguments, defaults completed; of attend's blocks
 * the shape only. */
msa_status msa__check_select(const msa__check *at, msa_select_args *args);
msa_status msa__check_attend(const msa__check *at, msa_attend_args *args);

/* blocks [T, Hkv, K], read on the host: every row has unique ids, ascending, at most the token's
 * local block, then -1 to the end. */
msa_status msa__check_rows(const msa__check *at, const msa_tensor *blocks, const msa_kv_view *kv,
                           const int32_t *cu_seqlens_q, int32_t block_size);

/* G = Hq / Hkv is whole and in 1..32. */
msa_status msa__check_groups(const msa__check *at, const char *q_name, int64_t n_q_heads,
                             int64_t n_kv_heads);

/* out [T, Hq, D] in q's dtype; lse, optional, [T, Hq] f32. */
msa_status msa__check_attend_outputs(const msa__check *at, const msa_tensor *q,
                                     const msa_tensor *out, const msa_tensor *lse);

/* A window and the first tokens that stay visible with it. */
msa_status msa__check_window(const msa__check *at, int64_t window, int64_t n_sink_tokens);

/* Optional [n_heads]: a logit is a number; -inf stands for no sink. */
msa_status msa__check_sink_logit(const msa__check *at, const float *sink_logit, int64_t n_heads);

/* N of the longest sequence. */
int64_t msa__kv_max_blocks(const msa_kv_view *kv, int32_t block_size);

#endif
