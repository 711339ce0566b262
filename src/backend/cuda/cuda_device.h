/* What every launcher of the CUDA backend uses: the context's state, error checks, launch sizes. */
#ifndef MSA_CUDA_DEVICE_H
#define MSA_CUDA_DEVICE_H

#include <cuda.h>
#include <cuda_runtime.h>

extern "C" {
#include "base/error.h"
#include "ops/backend.h"
}

typedef struct msa__cuda_state {
    int device;
    int n_sms;
    cudaStream_t stream;
    int owns_stream;
    decltype(&cuTensorMapEncodeTiled) encode_tensor_map;
    struct msa__cublaslt *cublaslt; /* NULL: not there, or not asked for yet (cublaslt.h) */
    int asked_cublaslt;
    char name[64]; /* "sm_90 NVIDIA H200" */
} msa__cuda_state;

static inline msa__cuda_state *cuda_state(const msa_context *ctx)
{
    return (msa__cuda_state *)ctx->device_state;
}

static inline cudaStream_t cuda_stream(const msa_context *ctx)
{
    return cuda_state(ctx)->stream;
}

/* A failing CUDA call becomes MSA_EDEVICE (MSA_EDEVMEM for memory) with the call's name. */
msa_status cuda_fail(cudaError_t error, const char *what);
#define MSA_CUDA_TRY(what, call)                                                                   \
    do {                                                                                           \
        cudaError_t cuda_try_error_ = (call);                                                      \
        if (cuda_try_error_ != cudaSuccess) return cuda_fail(cuda_try_error_, what);               \
    } while (0)

/* The launch just made by operator `op`. */
static inline msa_status cuda_launched(const char *op)
{
    cudaError_t error = cudaPeekAtLastError();
    return error == cudaSuccess ? MSA_OK : cuda_fail(cudaGetLastError(), op);
}

/* Let a kernel have `bytes` of dynamic shared memory, and ask for the largest division of it, as
 * all kernels of decode do: an SM that has to divide its memory anew waits until it is empty, and
 * with the largest one the kernels before and after find room beside it. */
template <typename... PARAMETERS>
static inline msa_status cuda_share_sm(const char *op, void (*kernel)(PARAMETERS...), size_t bytes)
{
    MSA_CUDA_TRY(
        op, cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes));
    MSA_CUDA_TRY(op, cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                                          cudaSharedmemCarveoutMaxShared));
    return MSA_OK;
}

/* The copy engine can load boxes of this tensor: 16-byte base and strides. */
int cuda_can_map(const msa_tensor *t);
/* Map of a whole tensor of up to 4 dims; box[d] elements of every dim a load, the innermost at most
 * 128 bytes wide; boxes land in shared memory with the 128-byte swizzle, elements outside read as
 * zero. */
msa_status cuda_tensor_map(msa_context *ctx, const char *op, const msa_tensor *t,
                           const uint32_t box[], CUtensorMap *map);
/* The same, boxes as they are in memory, row behind row. */
msa_status cuda_tensor_map_plain(msa_context *ctx, const char *op, const msa_tensor *t,
                                 const uint32_t box[], CUtensorMap *map);

/* Entries of the table, one file each. */
msa_status cuda_memory_alloc(msa_context *ctx, size_t bytes, void **out);
void cuda_memory_free(msa_context *ctx, void *ptr);
msa_status cuda_memory_copy(msa_context *ctx, void *dst, const void *src, size_t bytes,
                            int32_t kind);
msa_status cuda_memory_alloc_host(msa_context *ctx, size_t bytes, void **out);
void cuda_memory_free_host(msa_context *ctx, void *ptr);
msa_status cuda_memory_info(msa_context *ctx, int64_t *free_bytes, int64_t *total_bytes);
msa_status cuda_synchronize(msa_context *ctx);
msa_status cuda_graph_begin(msa_context *ctx);
msa_status cuda_graph_end(msa_context *ctx, msa_graph **out);
msa_status cuda_graph_launch(msa_context *ctx, msa_graph *graph);
void cuda_graph_destroy(msa_context *ctx, msa_graph *graph);
size_t cuda_select_workspace(const msa_context *ctx, const msa_select_args *args);
msa_status cuda_select(msa_context *ctx, const msa_select_args *args, void *workspace);
msa_status cuda_block_topk(msa_context *ctx, const msa_block_topk_args *args);
size_t cuda_attend_workspace(const msa_context *ctx, const msa_attend_args *args);
msa_status cuda_attend(msa_context *ctx, const msa_attend_args *args, void *workspace);
msa_status cuda_select_attend(msa_context *ctx, const msa_select_args *select,
                              const msa_attend_args *attend, void *workspace);
size_t cuda_dense_attend_workspace(const msa_context *ctx, const msa_dense_attend_args *args);
msa_status cuda_dense_attend(msa_context *ctx, const msa_dense_attend_args *args, void *workspace);
msa_status cuda_attend_merge(msa_context *ctx, const msa_attend_merge_args *args);
msa_status cuda_kv_append(msa_context *ctx, const msa_kv_append_args *args);
msa_status cuda_index_quantize(msa_context *ctx, const msa_index_quantize_args *args);
msa_status cuda_embed(msa_context *ctx, const msa_embed_args *args);
msa_status cuda_rmsnorm(msa_context *ctx, const msa_rmsnorm_args *args);
msa_status cuda_rope(msa_context *ctx, const msa_rope_args *args);
size_t cuda_linear_workspace(const msa_context *ctx, const msa_linear_args *args);
msa_status cuda_linear(msa_context *ctx, const msa_linear_args *args, void *workspace);
msa_status cuda_swiglu(msa_context *ctx, const msa_swiglu_args *args);
msa_status cuda_router(msa_context *ctx, const msa_router_args *args);
size_t cuda_moe_workspace(const msa_context *ctx, const msa_moe_args *args);
msa_status cuda_moe(msa_context *ctx, const msa_moe_args *args, void *workspace);

/* Kinds that MSA is compared with. */
msa_status cuda_window_blocks(msa_context *ctx, const msa_window_blocks_args *args);
msa_status cuda_block_means(msa_context *ctx, const msa_block_means_args *args);
size_t cuda_moba_select_workspace(const msa_context *ctx, const msa_moba_select_args *args);
msa_status cuda_moba_select(msa_context *ctx, const msa_moba_select_args *args, void *workspace);
size_t cuda_lightning_workspace(const msa_context *ctx, const msa_lightning_args *args);
msa_status cuda_lightning(msa_context *ctx, const msa_lightning_args *args, void *workspace);
size_t cuda_lightning_backward_workspace(const msa_context *ctx,
                                         const msa_lightning_backward_args *args);
msa_status cuda_lightning_backward(msa_context *ctx, const msa_lightning_backward_args *args,
                                   void *workspace);
msa_status cuda_sigmoid_gate(msa_context *ctx, const msa_sigmoid_gate_args *args);
msa_status cuda_sigmoid_gate_backward(msa_context *ctx, const msa_sigmoid_gate_backward_args *args);

/* Gradients. */
size_t cuda_reverse_index_workspace(const msa_context *ctx, const msa_reverse_index_args *args);
msa_status cuda_reverse_index(msa_context *ctx, const msa_reverse_index_args *args,
                              void *workspace);
size_t cuda_attend_backward_workspace(const msa_context *ctx, const msa_attend_backward_args *args);
msa_status cuda_attend_backward(msa_context *ctx, const msa_attend_backward_args *args,
                                void *workspace);
size_t cuda_dense_attend_backward_workspace(const msa_context *ctx,
                                            const msa_dense_attend_backward_args *args);
msa_status cuda_dense_attend_backward(msa_context *ctx, const msa_dense_attend_backward_args *args,
                                      void *workspace);
size_t cuda_index_kl_workspace(const msa_context *ctx, const msa_index_kl_args *args);
msa_status cuda_index_kl(msa_context *ctx, const msa_index_kl_args *args, void *workspace);
size_t cuda_block_mass_workspace(const msa_context *ctx, const msa_block_mass_args *args);
msa_status cuda_block_mass(msa_context *ctx, const msa_block_mass_args *args, void *workspace);
msa_status cuda_layernorm(msa_context *ctx, const msa_layernorm_args *args);
size_t cuda_layernorm_backward_workspace(const msa_context *ctx,
                                         const msa_layernorm_backward_args *args);
msa_status cuda_layernorm_backward(msa_context *ctx, const msa_layernorm_backward_args *args,
                                   void *workspace);
size_t cuda_token_select_workspace(const msa_context *ctx, const msa_token_select_args *args);
msa_status cuda_token_select(msa_context *ctx, const msa_token_select_args *args, void *workspace);
size_t cuda_token_attend_workspace(const msa_context *ctx, const msa_token_attend_args *args);
msa_status cuda_token_attend(msa_context *ctx, const msa_token_attend_args *args, void *workspace);
size_t cuda_token_attend_backward_workspace(const msa_context *ctx,
                                            const msa_token_attend_backward_args *args);
msa_status cuda_token_attend_backward(msa_context *ctx, const msa_token_attend_backward_args *args,
                                      void *workspace);
size_t cuda_token_kl_workspace(const msa_context *ctx, const msa_token_kl_args *args);
msa_status cuda_token_kl(msa_context *ctx, const msa_token_kl_args *args, void *workspace);
size_t cuda_linear_backward_workspace(const msa_context *ctx, const msa_linear_backward_args *args);
msa_status cuda_linear_backward(msa_context *ctx, const msa_linear_backward_args *args,
                                void *workspace);
size_t cuda_moe_backward_workspace(const msa_context *ctx, const msa_moe_backward_args *args);
msa_status cuda_moe_backward(msa_context *ctx, const msa_moe_backward_args *args, void *workspace);
size_t cuda_embed_backward_workspace(const msa_context *ctx, const msa_embed_backward_args *args);
msa_status cuda_embed_backward(msa_context *ctx, const msa_embed_backward_args *args,
                               void *workspace);
size_t cuda_rmsnorm_backward_workspace(const msa_context *ctx,
                                       const msa_rmsnorm_backward_args *args);
msa_status cuda_rmsnorm_backward(msa_context *ctx, const msa_rmsnorm_backward_args *args,
                                 void *workspace);
msa_status cuda_swiglu_backward(msa_context *ctx, const msa_swiglu_backward_args *args);
size_t cuda_router_backward_workspace(const msa_context *ctx, const msa_router_backward_args *args);
msa_status cuda_router_backward(msa_context *ctx, const msa_router_backward_args *args,
                                void *workspace);
msa_status cuda_cross_entropy(msa_context *ctx, const msa_cross_entropy_args *args);
msa_status cuda_adamw(msa_context *ctx, const msa_adamw_args *args);
size_t cuda_sum_squares_workspace(const msa_context *ctx, const msa_sum_squares_args *args);
msa_status cuda_sum_squares(msa_context *ctx, const msa_sum_squares_args *args, void *workspace);

#endif
