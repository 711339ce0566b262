/* Checks of rows of listed tokens, as msa_token_select writes them. */
#ifndef MSA_OPS_CHECK_TOKENS_H
#define MSA_OPS_CHECK_TOKENS_H

#include "ops/check.h"

/* i32 [n_tokens, K]. */
msa_status msa__check_tokens(const msa__check *at, const msa_tensor *tokens, int64_t n_tokens);

/* While running, on the host: every row has unique positions, ascending, at most the token's own,
 * then -1 to the end. The view and cu have been checked. */
msa_status msa__check_token_rows(const msa__check *at, const msa_tensor *tokens,
                                 const msa_kv_view *kv, const int32_t *cu);

#endif
