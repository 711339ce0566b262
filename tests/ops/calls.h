/* Operators called with host memory, whatever memory the context's backend works on.
 *
 * On a host backend call_X is msa_X. A device backend gets copies of every tensor and array of the
 * arguments, each in an allocation of exactly its size and as aligned as the original, poison and
 * padding included. Then the call is made twice, directly and from a recording: the outputs must be
 * the same bytes, the inputs untouched; then the outputs come back.
 */
#ifndef MSA_TESTS_CALLS_H
#define MSA_TESTS_CALLS_H

#include "msa/baselines.h"
#include "msa/gradient.h"
#include "msa/layer.h"

msa_status call_select(msa_context *ctx, const msa_plan *plan, const msa_select_args *args,
                       void *workspace, size_t workspace_bytes);
msa_status call_block_topk(msa_context *ctx, const msa_block_topk_args *args);
msa_status call_attend(msa_context *ctx, const msa_plan *plan, const msa_attend_args *args,
                       void *workspace, size_t workspace_bytes);
msa_status call_select_attend(msa_context *ctx, const msa_plan *plan,
                              const msa_select_attend_args *args, void *workspace,
                              size_t workspace_bytes);
msa_status call_dense_attend(msa_context *ctx, const msa_plan *plan,
                             const msa_dense_attend_args *args, void *workspace,
                             size_t workspace_bytes);
msa_status call_attend_merge(msa_context *ctx, const msa_attend_merge_args *args);
msa_status call_kv_append(msa_context *ctx, const msa_kv_append_args *args);
msa_status call_index_quantize(msa_context *ctx, const msa_index_quantize_args *args);
msa_status call_embed(msa_context *ctx, const msa_embed_args *args);
msa_status call_rmsnorm(msa_context *ctx, const msa_rmsnorm_args *args);
msa_status call_rope(msa_context *ctx, const msa_rope_args *args);
msa_status call_linear(msa_context *ctx, const msa_plan *plan, const msa_linear_args *args,
                       void *workspace, size_t workspace_bytes);
msa_status call_swiglu(msa_context *ctx, const msa_swiglu_args *args);
msa_status call_router(msa_context *ctx, const msa_router_args *args);
msa_status call_moe(msa_context *ctx, const msa_plan *plan, const msa_moe_args *args,
                    void *workspace, size_t workspace_bytes);

msa_status call_window_blocks(msa_context *ctx, const msa_window_blocks_args *args);
msa_status call_block_means(msa_context *ctx, const msa_block_means_args *args);
msa_status call_moba_select(msa_context *ctx, const msa_plan *plan,
                            const msa_moba_select_args *args, void *workspace,
                            size_t workspace_bytes);

msa_status call_lightning(msa_context *ctx, const msa_plan *plan, const msa_lightning_args *args,
                          void *workspace, size_t workspace_bytes);
msa_status call_lightning_backward(msa_context *ctx, const msa_plan *plan,
                                   const msa_lightning_backward_args *args, void *workspace,
                                   size_t workspace_bytes);
msa_status call_sigmoid_gate(msa_context *ctx, const msa_sigmoid_gate_args *args);
msa_status call_sigmoid_gate_backward(msa_context *ctx, const msa_sigmoid_gate_backward_args *args);

msa_status call_layernorm(msa_context *ctx, const msa_layernorm_args *args);
msa_status call_layernorm_backward(msa_context *ctx, const msa_plan *plan,
                                   const msa_layernorm_backward_args *args, void *workspace,
                                   size_t workspace_bytes);

msa_status call_token_select(msa_context *ctx, const msa_plan *plan,
                             const msa_token_select_args *args, void *workspace,
                             size_t workspace_bytes);
msa_status call_token_attend(msa_context *ctx, const msa_plan *plan,
                             const msa_token_attend_args *args, void *workspace,
                             size_t workspace_bytes);
msa_status call_token_attend_backward(msa_context *ctx, const msa_plan *plan,
                                      const msa_token_attend_backward_args *args, void *workspace,
                                      size_t workspace_bytes);
msa_status call_token_kl(msa_context *ctx, const msa_plan *plan, const msa_token_kl_args *args,
                         void *workspace, size_t workspace_bytes);

/* Gradients: the call of a reverse index is msa_reverse_index_build. */
msa_status call_reverse_index(msa_context *ctx, const msa_plan *plan,
                              const msa_reverse_index_args *args, void *workspace,
                              size_t workspace_bytes);
msa_status call_attend_backward(msa_context *ctx, const msa_plan *plan,
                                const msa_attend_backward_args *args, void *workspace,
                                size_t workspace_bytes);
msa_status call_dense_attend_backward(msa_context *ctx, const msa_plan *plan,
                                      const msa_dense_attend_backward_args *args, void *workspace,
                                      size_t workspace_bytes);
msa_status call_index_kl(msa_context *ctx, const msa_plan *plan, const msa_index_kl_args *args,
                         void *workspace, size_t workspace_bytes);
msa_status call_block_mass(msa_context *ctx, const msa_plan *plan, const msa_block_mass_args *args,
                           void *workspace, size_t workspace_bytes);
msa_status call_embed_backward(msa_context *ctx, const msa_plan *plan,
                               const msa_embed_backward_args *args, void *workspace,
                               size_t workspace_bytes);
msa_status call_rmsnorm_backward(msa_context *ctx, const msa_plan *plan,
                                 const msa_rmsnorm_backward_args *args, void *workspace,
                                 size_t workspace_bytes);
msa_status call_linear_backward(msa_context *ctx, const msa_plan *plan,
                                const msa_linear_backward_args *args, void *workspace,
                                size_t workspace_bytes);
msa_status call_swiglu_backward(msa_context *ctx, const msa_swiglu_backward_args *args);
msa_status call_router_backward(msa_context *ctx, const msa_plan *plan,
                                const msa_router_backward_args *args, void *workspace,
                                size_t workspace_bytes);
msa_status call_moe_backward(msa_context *ctx, const msa_plan *plan,
                             const msa_moe_backward_args *args, void *workspace,
                             size_t workspace_bytes);
msa_status call_cross_entropy(msa_context *ctx, const msa_cross_entropy_args *args);
msa_status call_adamw(msa_context *ctx, const msa_adamw_args *args);
msa_status call_sum_squares(msa_context *ctx, const msa_plan *plan,
                            const msa_sum_squares_args *args, void *workspace,
                            size_t workspace_bytes);

#endif
