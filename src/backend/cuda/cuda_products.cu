/* See products.h. */
#include "backend/cuda/products.h"

#include "backend/cuda/product_wide.cuh"

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

msa_status cuda_product_x(msa_context *ctx, const char *op, const msa_tensor *x, CUtensorMap *map)
{
    static const uint32_t box[2] = {64, 64};
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
    static const uint32_t box[2] = {WIDE_ROWS, 64};
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
    static const uint32_t box[4] = {WIDE_ROWS / 16, 2, 8, 64};
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

msa_status cuda_multiply(msa_context *ctx, const char *op, const cuda_product *product, int is_f8,
                         int is_pair)
{
    if (is_f8) {
        return is_pair ? launch_wide<true, true>(ctx, op, product)
                       : launch_wide<true, false>(ctx, op, product);
    }
    return is_pair ? launch_wide<false, true>(ctx, op, product)
                   : launch_wide<false, false>(ctx, op, product);
}
