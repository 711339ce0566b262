/* See products.h. */
#include "backend/cuda/products.h"

#include "backend/cuda/product_narrow.cuh"
#include "backend/cuda/product_wide.cuh"

/* Blocks of a cluster, and segments whose sums fit into a block's shared memory. */
#define CLUSTER_BLOCKS 8
#define BLOCK_SEGMENTS 6

/* 64 rows of activations are as many bytes as a block's 64 rows of weights: worth it only where
 * there are too few outputs for the wide kernel's larger tiles. */
int32_t cuda_product_width(int64_t n_rows, int64_t max_in, int64_t n_features)
{
    if (max_in > CLUSTER_BLOCKS * BLOCK_SEGMENTS * SEGMENT_STEPS * 64) return CUDA_WIDE;
    if (n_rows <= CUDA_NARROWEST) return CUDA_NARROWEST;
    return n_rows <= CUDA_NARROW && n_features <= 4096 ? CUDA_NARROW : CUDA_WIDE;
}

/* A row that is alone may have any stride; the copy engine wants a multiple of 16 bytes. */
static msa_tensor with_row_stride(const msa_tensor *t)
{
    msa_tensor result = *t;
    if (t->shape[0] == 1) result.stride[0] = (t->shape[1] + 15) / 16 * 16;
    return result;
}

int cuda_can_multiply(const msa_tensor *x, const msa_weight *weight)
{
    msa_tensor rows = with_row_stride(x), w = with_row_stride(&weight->w);
    return x->dtype == MSA_DTYPE_BF16 &&
           (w.dtype == MSA_DTYPE_BF16 || w.dtype == MSA_DTYPE_F8_E4M3) && cuda_can_map(&rows) &&
           cuda_can_map(&w);
}

int cuda_can_pair(const msa_weight *gate, const msa_weight *up)
{
    int64_t bytes = (int64_t)msa_dtype_bytes(gate->w.dtype);
    int64_t apart = (char *)up->w.data - (char *)gate->w.data;
    return gate->w.dtype == up->w.dtype && gate->w.shape[0] % 8 == 0 &&
           gate->w.stride[0] == up->w.stride[0] && apart % 16 == 0 && apart != 0 &&
           (apart < 0 ? -apart : apart) < (int64_t)1 << 40 && bytes > 0;
}

msa_status cuda_product_x(msa_context *ctx, const char *op, const msa_tensor *x, int32_t width,
                          CUtensorMap *map)
{
    const uint32_t box[2] = {width == CUDA_NARROWEST ? 16u : 64u, 64};
    msa_tensor rows = with_row_stride(x);
    return cuda_tensor_map(ctx, op, &rows, box, map);
}

static void set_scales(const msa_weight *weight, int which, cuda_product_weights *out)
{
    cuda_weight w = cuda_weight_of(weight);
    out->scales[which] = w.scales;
    out->scale_stride[which] = w.scale_stride;
}

/* MXFP8 arrives as it is in memory, to be expanded; bf16 as wgmma reads it. */
static msa_status map_weights(msa_context *ctx, const char *op, const msa_tensor *w,
                              const uint32_t box[], CUtensorMap *map)
{
    return w->dtype == MSA_DTYPE_F8_E4M3 ? cuda_tensor_map_plain(ctx, op, w, box, map)
                                         : cuda_tensor_map(ctx, op, w, box, map);
}

msa_status cuda_product_weights_of(msa_context *ctx, const char *op, const msa_weight *weight,
                                   cuda_product_weights *out)
{
    static const uint32_t box[2] = {WEIGHT_BOX, 64};
    msa_tensor w = with_row_stride(&weight->w);
    out->n_features = (int32_t)w.shape[0];
    out->n_in = (int32_t)w.shape[1];
    out->is_f8 = w.dtype == MSA_DTYPE_F8_E4M3;
    out->up_first = 0;
    set_scales(weight, 0, out);
    return map_weights(ctx, op, &w, box, &out->map);
}

msa_status cuda_product_pair_of(msa_context *ctx, const char *op, const msa_weight *gate,
                                const msa_weight *up, cuda_product_weights *out)
{
    static const uint32_t box[4] = {WEIGHT_BOX / 16, 2, 8, 64};
    const msa_tensor *w = &gate->w;
    int64_t apart = (char *)up->w.data - (char *)w->data;
    out->n_features = (int32_t)w->shape[0];
    out->n_in = (int32_t)w->shape[1];
    out->is_f8 = w->dtype == MSA_DTYPE_F8_E4M3;
    out->up_first = apart < 0;
    set_scales(apart < 0 ? up : gate, 0, out);
    set_scales(apart < 0 ? gate : up, 1, out);
    msa_tensor pair = msa_tensor_make(apart < 0 ? up->w.data : w->data, w->dtype, 4,
                                      w->shape[0] / 8, 2, 8, w->shape[1]);
    pair.stride[0] = 8 * w->stride[0];
    pair.stride[1] = (apart < 0 ? -apart : apart) / (int64_t)msa_dtype_bytes(w->dtype);
    pair.stride[2] = w->stride[0];
    return map_weights(ctx, op, &pair, box, &out->map);
}

template <bool F8, bool PAIR>
static msa_status launch_wide(msa_context *ctx, const char *op, const cuda_product *product)
{
    int bytes = (int)sizeof(wide_shared<F8>) + 1024;
    auto kernel = product_wide_kernel<F8, PAIR>;
    MSA_CUDA_TRY(op,
                 cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
    kernel<<<cuda_state(ctx)->n_sms, wide_config<F8>::THREADS, bytes, cuda_stream(ctx)>>>(*product);
    return cuda_launched(op);
}

/* Segments a block takes: few, so that many blocks read, but all blocks shall run at once; a block
 * keeps the sums of its segments, so `most` lets enough blocks share an SM. */
static int32_t segments_per_block(int32_t max_in, int64_t n_tiles, int64_t n_blocks, int32_t most)
{
    int32_t n_segments = (max_in + SEGMENT_STEPS * 64 - 1) / (SEGMENT_STEPS * 64);
    int32_t n = (n_segments + CLUSTER_BLOCKS - 1) / CLUSTER_BLOCKS;
    while (n < most && n_tiles * ((n_segments + n - 1) / n) > n_blocks) n++;
    return n;
}

template <bool F8, bool PAIR, int N>
static msa_status launch_narrow(msa_context *ctx, const char *op, const cuda_product *product,
                                int32_t max_tiles)
{
    int32_t features = PAIR ? NARROW_ROWS / 2 : NARROW_ROWS;
    int32_t n_m = (product->n_features + features - 1) / features;
    typedef narrow_config<F8, N> config_of;
    int32_t per_block =
        segments_per_block(product->max_in, (int64_t)n_m * max_tiles,
                           config_of::BLOCKS * cuda_state(ctx)->n_sms, config_of::SEGMENTS);
    int bytes = (int)sizeof(narrow_shared<F8, N>) + 1024 + per_block * config_of::SEGMENT_BYTES;
    int32_t per_cluster = per_block * SEGMENT_STEPS * 64;
    auto kernel = product_narrow_kernel<F8, PAIR, N>;
    MSA_CUDA_TRY(op,
                 cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
    cudaLaunchAttribute cluster = {};
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim.x = cluster.val.clusterDim.y = 1;
    cluster.val.clusterDim.z = (unsigned)((product->max_in + per_cluster - 1) / per_cluster);
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3((unsigned)n_m, (unsigned)max_tiles, cluster.val.clusterDim.z);
    config.blockDim = dim3(config_of::THREADS);
    config.dynamicSmemBytes = (size_t)bytes;
    config.stream = cuda_stream(ctx);
    config.attrs = &cluster;
    config.numAttrs = 1;
    MSA_CUDA_TRY(op, cudaLaunchKernelEx(&config, kernel, *product, per_block));
    return MSA_OK;
}

template <bool F8, bool PAIR>
static msa_status launch(msa_context *ctx, const char *op, const cuda_product *product,
                         int32_t max_tiles)
{
    if (product->width == CUDA_NARROWEST) {
        return launch_narrow<F8, PAIR, CUDA_NARROWEST>(ctx, op, product, max_tiles);
    }
    if (product->width == CUDA_NARROW) {
        return launch_narrow<F8, PAIR, CUDA_NARROW>(ctx, op, product, max_tiles);
    }
    return launch_wide<F8, PAIR>(ctx, op, product);
}

msa_status cuda_multiply(msa_context *ctx, const char *op, const cuda_product *product, int is_f8,
                         int is_pair, int32_t max_tiles)
{
    if (is_f8) {
        return is_pair ? launch<true, true>(ctx, op, product, max_tiles)
                       : launch<true, false>(ctx, op, product, max_tiles);
    }
    return is_pair ? launch<false, true>(ctx, op, product, max_tiles)
                   : launch<false, false>(ctx, op, product, max_tiles);
}
