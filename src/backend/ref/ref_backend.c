/* The table of the reference backend: every operator in plain scalar C. */
#include "backend/ref/ref_backend.h"

static msa_status open_ref(msa_context *ctx, const msa_context_args *args)
{
    (void)ctx;
    (void)args; /* the reference has one path on every machine */
    return MSA_OK;
}

static const char *ref_isa(const msa_context *ctx)
{
    (void)ctx;
    return "scalar";
}

const msa__backend msa__ref_backend = {
    .name = "ref",
    .open = open_ref,
    .isa = ref_isa,
    .select_workspace = msa__ref_select_workspace,
    .select = msa__ref_select,
    .block_topk = msa__ref_block_topk,
    .attend_workspace = msa__ref_attend_workspace,
    .attend = msa__ref_attend,
    .dense_attend_workspace = msa__ref_dense_attend_workspace,
    .dense_attend = msa__ref_dense_attend,
    .attend_merge = msa__ref_attend_merge,
    .kv_append = msa__ref_kv_append,
    .index_quantize = msa__ref_index_quantize,
    .window_blocks = msa__ref_window_blocks,
    .block_means = msa__ref_block_means,
    .moba_select_workspace = msa__ref_moba_select_workspace,
    .moba_select = msa__ref_moba_select,
    .layernorm = msa__ref_layernorm,
    .layernorm_backward_workspace = msa__ref_layernorm_backward_workspace,
    .layernorm_backward = msa__ref_layernorm_backward,
    .token_select_workspace = msa__ref_token_select_workspace,
    .token_select = msa__ref_token_select,
    .token_attend_workspace = msa__ref_token_attend_workspace,
    .token_attend = msa__ref_token_attend,
    .token_attend_backward_workspace = msa__ref_token_attend_backward_workspace,
    .token_attend_backward = msa__ref_token_attend_backward,
    .token_kl_workspace = msa__ref_token_kl_workspace,
    .token_kl = msa__ref_token_kl,
    .lightning_workspace = msa__ref_lightning_workspace,
    .lightning = msa__ref_lightning,
    .sigmoid_gate = msa__ref_sigmoid_gate,
    .lightning_backward_workspace = msa__ref_lightning_backward_workspace,
    .lightning_backward = msa__ref_lightning_backward,
    .sigmoid_gate_backward = msa__ref_sigmoid_gate_backward,
    .embed = msa__ref_embed,
    .rmsnorm = msa__ref_rmsnorm,
    .rope = msa__ref_rope,
    .linear_workspace = msa__ref_linear_workspace,
    .linear = msa__ref_linear,
    .swiglu = msa__ref_swiglu,
    .router = msa__ref_router,
    .moe_workspace = msa__ref_moe_workspace,
    .moe = msa__ref_moe,
    .embed_backward_workspace = msa__ref_embed_backward_workspace,
    .embed_backward = msa__ref_embed_backward,
    .rmsnorm_backward_workspace = msa__ref_rmsnorm_backward_workspace,
    .rmsnorm_backward = msa__ref_rmsnorm_backward,
    .linear_backward_workspace = msa__ref_linear_backward_workspace,
    .linear_backward = msa__ref_linear_backward,
    .swiglu_backward = msa__ref_swiglu_backward,
    .router_backward_workspace = msa__ref_router_backward_workspace,
    .router_backward = msa__ref_router_backward,
    .moe_backward_workspace = msa__ref_moe_backward_workspace,
    .moe_backward = msa__ref_moe_backward,
    .cross_entropy = msa__ref_cross_entropy,
    .adamw = msa__ref_adamw,
    .sum_squares_workspace = msa__ref_sum_squares_workspace,
    .sum_squares = msa__ref_sum_squares,
    .reverse_index_workspace = msa__ref_reverse_index_workspace,
    .reverse_index = msa__ref_reverse_index,
    .attend_backward_workspace = msa__ref_attend_backward_workspace,
    .attend_backward = msa__ref_attend_backward,
    .dense_attend_backward_workspace = msa__ref_dense_attend_backward_workspace,
    .dense_attend_backward = msa__ref_dense_attend_backward,
    .index_kl_workspace = msa__ref_index_kl_workspace,
    .index_kl = msa__ref_index_kl,
    .block_mass_workspace = msa__ref_block_mass_workspace,
    .block_mass = msa__ref_block_mass,
};
