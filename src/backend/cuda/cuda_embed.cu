/* Embedding: each token copies its row of the table. A row with an id outside the table becomes
 * NaN: the device cannot report it, and it must not be read. */
#include "backend/cuda/cuda_device.h"
#include "backend/cuda/elements.cuh"

template <int W>
__global__ void embed_kernel(cuda_view table, int64_t vocab, const int32_t *ids, cuda_view out,
                             int64_t n)
{
    int64_t t = blockIdx.x;
    int32_t id = ids[t];
    bool known = id >= 0 && id < vocab;
    int64_t step = (int64_t)gridDim.y * blockDim.x * W;
    for (int64_t i = ((int64_t)blockIdx.y * blockDim.x + threadIdx.x) * W; i < n; i += step) {
        float x[W];
        if (known) {
            load_elements<W>(table.data, table.dtype, id * table.stride[0] + i, x);
        } else {
            for (int j = 0; j < W; j++) x[j] = NAN;
        }
        store_elements<W>(out.data, out.dtype, t * out.stride[0] + i, x);
    }
}

msa_status cuda_embed(msa_context *ctx, const msa_embed_args *args)
{
    MSA_CUDA_TRY("embed", cudaSetDevice(cuda_state(ctx)->device));
    int64_t n_tokens = args->out.shape[0], n = args->out.shape[1];
    int wide = cuda_is_wide(&args->table) && cuda_is_wide(&args->out);
    auto kernel = wide ? embed_kernel<8> : embed_kernel<1>;
    dim3 grid((unsigned)n_tokens, n_tokens < 128 && n > 2048 ? 4 : 1);
    kernel<<<grid, 256, 0, cuda_stream(ctx)>>>(cuda_view_of(&args->table), args->table.shape[0],
                                               args->ids, cuda_view_of(&args->out), n);
    return cuda_launched("embed");
}
