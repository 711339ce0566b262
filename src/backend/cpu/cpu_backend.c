/* The table of the cpu backend, and the choice of an instruction set. */
#include "backend/cpu/cpu_backend.h"
#include "base/error.h"

#include <string.h>

static msa_status open_cpu(msa_context *ctx, const msa_context_args *args)
{
    const char *isa = args->cpu_isa;
    for (int i = 0; msa__cpu_kernel_tables[i]; i++) {
        const msa__cpu_kernels *table = msa__cpu_kernel_tables[i];
        if (isa && strcmp(isa, table->name) != 0) continue;
        if (table->usable()) {
            ctx->cpu_kernels = table;
            return MSA_OK;
        }
        if (isa)
            return MSA_FAIL(MSA_EUNSUPPORTED, "context: cpu_isa = %s, this machine lacks it", isa);
    }
    return MSA_FAIL(MSA_EINVAL, "context: cpu_isa = %.32s, not compiled in", isa ? isa : "(best)");
}

static const char *cpu_isa(const msa_context *ctx)
{
    return ctx->cpu_kernels->name;
}

const char *msa_cpu_isa_name(int32_t i, int32_t *usable)
{
    for (int32_t n = 0; n <= i; n++) {
        if (i < 0 || !msa__cpu_kernel_tables[n]) return NULL;
    }
    if (usable) *usable = msa__cpu_kernel_tables[i]->usable();
    return msa__cpu_kernel_tables[i]->name;
}

const msa__backend msa__cpu_backend = {
    .name = "cpu",
    .open = open_cpu,
    .isa = cpu_isa,
    .select_workspace = msa__cpu_select_workspace,
    .select = msa__cpu_select,
    .block_topk = msa__cpu_block_topk,
    .attend_workspace = msa__cpu_attend_workspace,
    .attend = msa__cpu_attend,
    .dense_attend_workspace = msa__cpu_dense_attend_workspace,
    .dense_attend = msa__cpu_dense_attend,
    .attend_merge = msa__cpu_attend_merge,
    .kv_append = msa__cpu_kv_append,
    .index_quantize = msa__cpu_index_quantize,
    .window_blocks = msa__cpu_window_blocks,
    .block_means = msa__cpu_block_means,
    .moba_select_workspace = msa__cpu_moba_select_workspace,
    .moba_select = msa__cpu_moba_select,
    .layernorm = msa__cpu_layernorm,
    .layernorm_backward_workspace = msa__cpu_layernorm_backward_workspace,
    .layernorm_backward = msa__cpu_layernorm_backward,
    .token_select_workspace = msa__cpu_token_select_workspace,
    .token_select = msa__cpu_token_select,
    .token_attend_workspace = msa__cpu_token_attend_workspace,
    .token_attend = msa__cpu_token_attend,
    .token_attend_backward_workspace = msa__cpu_token_attend_backward_workspace,
    .token_attend_backward = msa__cpu_token_attend_backward,
    .token_kl_workspace = msa__cpu_token_kl_workspace,
    .token_kl = msa__cpu_token_kl,
    .lightning_workspace = msa__cpu_lightning_workspace,
    .lightning = msa__cpu_lightning,
    .sigmoid_gate = msa__cpu_sigmoid_gate,
    .lightning_backward_workspace = msa__cpu_lightning_backward_workspace,
    .lightning_backward = msa__cpu_lightning_backward,
    .sigmoid_gate_backward = msa__cpu_sigmoid_gate_backward,
    .embed = msa__cpu_embed,
    .rmsnorm = msa__cpu_rmsnorm,
    .rope = msa__cpu_rope,
    .swiglu = msa__cpu_swiglu,
    .router = msa__cpu_router,
    .linear_workspace = msa__cpu_linear_workspace,
    .linear = msa__cpu_linear,
    .moe_workspace = msa__cpu_moe_workspace,
    .moe = msa__cpu_moe,
    .reverse_index_workspace = msa__cpu_reverse_index_workspace,
    .reverse_index = msa__cpu_reverse_index,
    .attend_backward_workspace = msa__cpu_attend_backward_workspace,
    .attend_backward = msa__cpu_attend_backward,
    .dense_attend_backward_workspace = msa__cpu_dense_attend_backward_workspace,
    .dense_attend_backward = msa__cpu_dense_attend_backward,
    .index_kl_workspace = msa__cpu_index_kl_workspace,
    .index_kl = msa__cpu_index_kl,
    .block_mass_workspace = msa__cpu_block_mass_workspace,
    .block_mass = msa__cpu_block_mass,
    .embed_backward_workspace = msa__cpu_embed_backward_workspace,
    .embed_backward = msa__cpu_embed_backward,
    .rmsnorm_backward_workspace = msa__cpu_rmsnorm_backward_workspace,
    .rmsnorm_backward = msa__cpu_rmsnorm_backward,
    .linear_backward_workspace = msa__cpu_linear_backward_workspace,
    .linear_backward = msa__cpu_linear_backward,
    .swiglu_backward = msa__cpu_swiglu_backward,
    .router_backward_workspace = msa__cpu_router_backward_workspace,
    .router_backward = msa__cpu_router_backward,
    .moe_backward_workspace = msa__cpu_moe_backward_workspace,
    .moe_backward = msa__cpu_moe_backward,
    .cross_entropy = msa__cpu_cross_entropy,
    .adamw = msa__cpu_adamw,
    .sum_squares_workspace = msa__cpu_sum_squares_workspace,
    .sum_squares = msa__cpu_sum_squares,
};
