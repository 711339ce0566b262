/* The entries of the reference table, one file each. */
#ifndef MSA_REF_BACKEND_H
#define MSA_REF_BACKEND_H

#include "ops/backend.h"

size_t msa__ref_select_workspace(const msa_context *ctx, const msa_select_args *args);
msa_status msa__ref_select(msa_context *ctx, const msa_select_args *args, void *workspace);
msa_status msa__ref_block_topk(msa_context *ctx, const msa_block_topk_args *args);
size_t msa__ref_attend_workspace(const msa_context *ctx, const msa_attend_args *args);
msa_status msa__ref_attend(msa_context *ctx, const msa_attend_args *args, void *workspace);
size_t msa__ref_dense_attend_workspace(const msa_context *ctx, const msa_dense_attend_args *args);
msa_status msa__ref_dense_attend(msa_context *ctx, const msa_dense_attend_args *args,
                                 void *workspace);
msa_status msa__ref_attend_merge(msa_context *ctx, const msa_attend_merge_args *args);
msa_status msa__ref_kv_append(msa_context *ctx, const msa_kv_append_args *args);
msa_status msa__ref_index_quantize(msa_context *ctx, const msa_index_quantize_args *args);
msa_status msa__ref_window_blocks(msa_context *ctx, const msa_window_blocks_args *args);
msa_status msa__ref_block_means(msa_context *ctx, const msa_block_means_args *args);
size_t msa__ref_moba_select_workspace(const msa_context *ctx, const msa_moba_select_args *args);
msa_status msa__ref_moba_select(msa_context *ctx, const msa_moba_select_args *args,
                                void *workspace);
msa_status msa__ref_layernorm(msa_context *ctx, const msa_layernorm_args *args);
size_t msa__ref_layernorm_backward_workspace(const msa_context *ctx,
                                             const msa_layernorm_backward_args *args);
msa_status msa__ref_layernorm_backward(msa_context *ctx, const msa_layernorm_backward_args *args,
                                       void *workspace);
size_t msa__ref_token_select_workspace(const msa_context *ctx, const msa_token_select_args *args);
msa_status msa__ref_token_select(msa_context *ctx, const msa_token_select_args *args,
                                 void *workspace);
size_t msa__ref_token_attend_workspace(const msa_context *ctx, const msa_token_attend_args *args);
msa_status msa__ref_token_attend(msa_context *ctx, const msa_token_attend_args *args,
                                 void *workspace);
size_t msa__ref_token_attend_backward_workspace(const msa_context *ctx,
                                                const msa_token_attend_backward_args *args);
msa_status msa__ref_token_attend_backward(msa_context *ctx,
                                          const msa_token_attend_backward_args *args,
                                          void *workspace);
size_t msa__ref_token_kl_workspace(const msa_context *ctx, const msa_token_kl_args *args);
msa_status msa__ref_token_kl(msa_context *ctx, const msa_token_kl_args *args, void *workspace);
size_t msa__ref_lightning_workspace(const msa_context *ctx, const msa_lightning_args *args);
msa_status msa__ref_lightning(msa_context *ctx, const msa_lightning_args *args, void *workspace);
msa_status msa__ref_sigmoid_gate(msa_context *ctx, const msa_sigmoid_gate_args *args);
size_t msa__ref_lightning_backward_workspace(const msa_context *ctx,
                                             const msa_lightning_backward_args *args);
msa_status msa__ref_lightning_backward(msa_context *ctx, const msa_lightning_backward_args *args,
                                       void *workspace);
msa_status msa__ref_sigmoid_gate_backward(msa_context *ctx,
                                          const msa_sigmoid_gate_backward_args *args);

msa_status msa__ref_embed(msa_context *ctx, const msa_embed_args *args);
msa_status msa__ref_rmsnorm(msa_context *ctx, const msa_rmsnorm_args *args);
msa_status msa__ref_rope(msa_context *ctx, const msa_rope_args *args);
size_t msa__ref_linear_workspace(const msa_context *ctx, const msa_linear_args *args);
msa_status msa__ref_linear(msa_context *ctx, const msa_linear_args *args, void *workspace);
msa_status msa__ref_swiglu(msa_context *ctx, const msa_swiglu_args *args);
msa_status msa__ref_router(msa_context *ctx, const msa_router_args *args);
size_t msa__ref_moe_workspace(const msa_context *ctx, const msa_moe_args *args);
msa_status msa__ref_moe(msa_context *ctx, const msa_moe_args *args, void *workspace);

size_t msa__ref_embed_backward_workspace(const msa_context *ctx,
                                         const msa_embed_backward_args *args);
msa_status msa__ref_embed_backward(msa_context *ctx, const msa_embed_backward_args *args,
                                   void *workspace);
size_t msa__ref_rmsnorm_backward_workspace(const msa_context *ctx,
                                           const msa_rmsnorm_backward_args *args);
msa_status msa__ref_rmsnorm_backward(msa_context *ctx, const msa_rmsnorm_backward_args *args,
                                     void *workspace);
size_t msa__ref_linear_backward_workspace(const msa_context *ctx,
                                          const msa_linear_backward_args *args);
msa_status msa__ref_linear_backward(msa_context *ctx, const msa_linear_backward_args *args,
                                    void *workspace);
msa_status msa__ref_swiglu_backward(msa_context *ctx, const msa_swiglu_backward_args *args);
size_t msa__ref_router_backward_workspace(const msa_context *ctx,
                                          const msa_router_backward_args *args);
msa_status msa__ref_router_backward(msa_context *ctx, const msa_router_backward_args *args,
                                    void *workspace);
size_t msa__ref_moe_backward_workspace(const msa_context *ctx, const msa_moe_backward_args *args);
msa_status msa__ref_moe_backward(msa_context *ctx, const msa_moe_backward_args *args,
                                 void *workspace);
msa_status msa__ref_cross_entropy(msa_context *ctx, const msa_cross_entropy_args *args);
msa_status msa__ref_adamw(msa_context *ctx, const msa_adamw_args *args);
size_t msa__ref_sum_squares_workspace(const msa_context *ctx, const msa_sum_squares_args *args);
msa_status msa__ref_sum_squares(msa_context *ctx, const msa_sum_squares_args *args,
                                void *workspace);
size_t msa__ref_reverse_index_workspace(const msa_context *ctx, const msa_reverse_index_args *args);
msa_status msa__ref_reverse_index(msa_context *ctx, const msa_reverse_index_args *args,
                                  void *workspace);
size_t msa__ref_attend_backward_workspace(const msa_context *ctx,
                                          const msa_attend_backward_args *args);
msa_status msa__ref_attend_backward(msa_context *ctx, const msa_attend_backward_args *args,
                                    void *workspace);
size_t msa__ref_dense_attend_backward_workspace(const msa_context *ctx,
                                                const msa_dense_attend_backward_args *args);
msa_status msa__ref_dense_attend_backward(msa_context *ctx,
                                          const msa_dense_attend_backward_args *args,
                                          void *workspace);
size_t msa__ref_index_kl_workspace(const msa_context *ctx, const msa_index_kl_args *args);
msa_status msa__ref_index_kl(msa_context *ctx, const msa_index_kl_args *args, void *workspace);
size_t msa__ref_block_mass_workspace(const msa_context *ctx, const msa_block_mass_args *args);
msa_status msa__ref_block_mass(msa_context *ctx, const msa_block_mass_args *args, void *workspace);

#endif
