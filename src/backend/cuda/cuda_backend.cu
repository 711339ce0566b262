/* The table of the CUDA backend, and opening a device. */
#include "backend/cuda/cublaslt.h"

extern "C" {
#include "base/env.h"
}

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

msa_status cuda_fail(cudaError_t error, const char *what)
{
    msa_status status = error == cudaErrorMemoryAllocation ? MSA_EDEVMEM : MSA_EDEVICE;
    return MSA_FAIL(status, "%s: CUDA reports %s (%s), possibly from earlier work", what,
                    cudaGetErrorName(error), cudaGetErrorString(error));
}

static msa_status check_device(int device, cudaDeviceProp *properties)
{
    int n_devices = 0, driver = 0;
    cudaError_t error = cudaGetDeviceCount(&n_devices);
    if (error != cudaSuccess || n_devices == 0) {
        (void)cudaGetLastError();
        (void)cudaDriverGetVersion(&driver); /* 0: not installed */
        return MSA_FAIL(MSA_EUNSUPPORTED, "context: backend = cuda, not available: %s",
                        driver == 0            ? "no CUDA driver"
                        : error == cudaSuccess ? "no CUDA device"
                                               : cudaGetErrorString(error));
    }
    if (device < 0 || device >= n_devices) {
        return MSA_FAIL(MSA_EINVAL, "context: device = %d, must be 0..%d", device, n_devices - 1);
    }
    MSA_CUDA_TRY("context", cudaGetDeviceProperties(properties, device));
    if (properties->major != 9 || properties->minor != 0) {
        return MSA_FAIL(
            MSA_EUNSUPPORTED,
            "context: device = %d (%.64s, compute capability %d.%d), must be Hopper (9.0)", device,
            properties->name, properties->major, properties->minor);
    }
    return MSA_OK;
}

static msa_status find_driver_calls(msa__cuda_state *state)
{
    cudaDriverEntryPointQueryResult found;
    MSA_CUDA_TRY("context", cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled",
                                                             (void **)&state->encode_tensor_map,
                                                             12000, cudaEnableDefault, &found));
    if (found != cudaDriverEntryPointSuccess) {
        return MSA_FAIL(MSA_EUNSUPPORTED, "context: backend = cuda, the driver has no tensor maps");
    }
    return MSA_OK;
}

static msa_status open_stream(msa__cuda_state *state, void *stream)
{
    MSA_CUDA_TRY("context", cudaSetDevice(state->device));
    state->stream = (cudaStream_t)stream;
    if (stream) return MSA_OK;
    MSA_CUDA_TRY("context", cudaStreamCreateWithFlags(&state->stream, cudaStreamNonBlocking));
    state->owns_stream = 1;
    return MSA_OK;
}

static msa_status open_cuda(msa_context *ctx, const msa_context_args *args)
{
    cudaDeviceProp properties;
    MSA_TRY(check_device(args->device, &properties));
    msa__cuda_state *state =
        (msa__cuda_state *)ctx->allocator.alloc(ctx->allocator.user, sizeof(*state), 64);
    if (!state) return MSA_FAIL(MSA_ENOMEM, "context: no memory for the CUDA backend");
    memset(state, 0, sizeof(*state));
    ctx->device_state = state; /* msa_context_destroy closes it when something below fails */
    state->device = args->device;
    state->n_sms = properties.multiProcessorCount;
    snprintf(state->name, sizeof(state->name), "sm_90 %.50s", properties.name);
    MSA_TRY(find_driver_calls(state));
    MSA_TRY(open_stream(state, args->stream));
    const char *cublaslt = msa__env_cublaslt(); /* a file that is named must be good */
    return cublaslt ? cublaslt_open(ctx, cublaslt) : MSA_OK;
}

static void close_cuda(msa_context *ctx)
{
    msa__cuda_state *state = cuda_state(ctx);
    if (!state) return;
    (void)cudaSetDevice(state->device);
    if (state->stream) (void)cudaStreamSynchronize(state->stream);
    cublaslt_close(ctx);
    if (state->owns_stream) (void)cudaStreamDestroy(state->stream);
    ctx->allocator.free(ctx->allocator.user, state, sizeof(*state));
    ctx->device_state = NULL;
}

static const char *device_name(const msa_context *ctx)
{
    return cuda_state(ctx)->name;
}

static const msa__backend table = {
    .name = "cuda",
    .device_memory = 1,
    .open = open_cuda,
    .close = close_cuda,
    .isa = device_name,
    .memory_alloc = cuda_memory_alloc,
    .memory_free = cuda_memory_free,
    .memory_copy = cuda_memory_copy,
    .memory_alloc_host = cuda_memory_alloc_host,
    .memory_free_host = cuda_memory_free_host,
    .memory_info = cuda_memory_info,
    .synchronize = cuda_synchronize,
    .graph_begin = cuda_graph_begin,
    .graph_end = cuda_graph_end,
    .graph_launch = cuda_graph_launch,
    .graph_destroy = cuda_graph_destroy,
    .select_workspace = cuda_select_workspace,
    .select = cuda_select,
    .block_topk = cuda_block_topk,
    .attend_workspace = cuda_attend_workspace,
    .attend = cuda_attend,
    .select_attend = cuda_select_attend,
    .dense_attend_workspace = cuda_dense_attend_workspace,
    .dense_attend = cuda_dense_attend,
    .attend_merge = cuda_attend_merge,
    .kv_append = cuda_kv_append,
    .index_quantize = cuda_index_quantize,
    .window_blocks = cuda_window_blocks,
    .block_means = cuda_block_means,
    .moba_select_workspace = cuda_moba_select_workspace,
    .moba_select = cuda_moba_select,
    .layernorm = cuda_layernorm,
    .layernorm_backward_workspace = cuda_layernorm_backward_workspace,
    .layernorm_backward = cuda_layernorm_backward,
    .token_select_workspace = cuda_token_select_workspace,
    .token_select = cuda_token_select,
    .token_attend_workspace = cuda_token_attend_workspace,
    .token_attend = cuda_token_attend,
    .token_attend_backward_workspace = cuda_token_attend_backward_workspace,
    .token_attend_backward = cuda_token_attend_backward,
    .token_kl_workspace = cuda_token_kl_workspace,
    .token_kl = cuda_token_kl,
    .lightning_workspace = cuda_lightning_workspace,
    .lightning = cuda_lightning,
    .sigmoid_gate = cuda_sigmoid_gate,
    .lightning_backward_workspace = cuda_lightning_backward_workspace,
    .lightning_backward = cuda_lightning_backward,
    .sigmoid_gate_backward = cuda_sigmoid_gate_backward,
    .embed = cuda_embed,
    .rmsnorm = cuda_rmsnorm,
    .rope = cuda_rope,
    .linear_workspace = cuda_linear_workspace,
    .linear = cuda_linear,
    .swiglu = cuda_swiglu,
    .router = cuda_router,
    .moe_workspace = cuda_moe_workspace,
    .moe = cuda_moe,
    .reverse_index_workspace = cuda_reverse_index_workspace,
    .reverse_index = cuda_reverse_index,
    .attend_backward_workspace = cuda_attend_backward_workspace,
    .attend_backward = cuda_attend_backward,
    .dense_attend_backward_workspace = cuda_dense_attend_backward_workspace,
    .dense_attend_backward = cuda_dense_attend_backward,
    .index_kl_workspace = cuda_index_kl_workspace,
    .index_kl = cuda_index_kl,
    .block_mass_workspace = cuda_block_mass_workspace,
    .block_mass = cuda_block_mass,
    .embed_backward_workspace = cuda_embed_backward_workspace,
    .embed_backward = cuda_embed_backward,
    .rmsnorm_backward_workspace = cuda_rmsnorm_backward_workspace,
    .rmsnorm_backward = cuda_rmsnorm_backward,
    .linear_backward_workspace = cuda_linear_backward_workspace,
    .linear_backward = cuda_linear_backward,
    .swiglu_backward = cuda_swiglu_backward,
    .router_backward_workspace = cuda_router_backward_workspace,
    .router_backward = cuda_router_backward,
    .moe_backward_workspace = cuda_moe_backward_workspace,
    .moe_backward = cuda_moe_backward,
    .cross_entropy = cuda_cross_entropy,
    .adamw = cuda_adamw,
    .sum_squares_workspace = cuda_sum_squares_workspace,
    .sum_squares = cuda_sum_squares,
};

/* Errors of this library go into the message of the library that opened it. */
static const msa__backend_host *host;

extern "C" void msa__set_error(const char *format, ...)
{
    char text[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof(text), format, arguments);
    va_end(arguments);
    host->set_error("%s", text);
}

extern "C" __attribute__((visibility("default"))) const msa__backend *
msa__cuda_backend_entry(int32_t abi, const msa__backend_host *opened_by)
{
    if (abi != MSA__BACKEND_ABI) return NULL;
    host = opened_by;
    return &table;
}
