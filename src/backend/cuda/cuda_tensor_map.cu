/* Tensor maps: what the copy engine must know of a tensor to load boxes of it. */
#include "backend/cuda/cuda_device.h"

static CUtensorMapDataType element_type(msa_dtype dtype)
{
    switch (dtype) {
    case MSA_DTYPE_F32:
        return CU_TENSOR_MAP_DATA_TYPE_FLOAT32;
    case MSA_DTYPE_BF16:
        return CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
    case MSA_DTYPE_F16:
        return CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
    default:
        return CU_TENSOR_MAP_DATA_TYPE_UINT8;
    }
}

int cuda_can_map(const msa_tensor *t)
{
    if ((uintptr_t)t->data % 16) return 0;
    for (int32_t d = 0; d + 1 < t->n_dims; d++) {
        if (t->stride[d] * (int64_t)msa_dtype_bytes(t->dtype) % 16) return 0;
    }
    return 1;
}

static msa_status encode(msa_context *ctx, const char *op, const msa_tensor *t,
                         const uint32_t box[], CUtensorMapSwizzle swizzle, CUtensorMap *map)
{
    cuuint64_t extent[4], stride[4];
    cuuint32_t box_extent[4], step[4];
    for (int32_t i = 0; i < t->n_dims; i++) {
        int32_t d = t->n_dims - 1 - i; /* the copy engine counts from the innermost */
        extent[i] = (cuuint64_t)t->shape[d];
        box_extent[i] = box[d];
        step[i] = 1;
        if (i > 0) stride[i - 1] = (cuuint64_t)t->stride[d] * msa_dtype_bytes(t->dtype);
    }
    CUresult result = cuda_state(ctx)->encode_tensor_map(
        map, element_type(t->dtype), (cuuint32_t)t->n_dims, t->data, extent, stride, box_extent,
        step, CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
        CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (result != CUDA_SUCCESS) {
        return MSA_FAIL(MSA_EDEVICE, "%s: CUDA refuses a tensor map (%d)", op, (int)result);
    }
    return MSA_OK;
}

msa_status cuda_tensor_map(msa_context *ctx, const char *op, const msa_tensor *t,
                           const uint32_t box[], CUtensorMap *map)
{
    return encode(ctx, op, t, box, CU_TENSOR_MAP_SWIZZLE_128B, map);
}

msa_status cuda_tensor_map_plain(msa_context *ctx, const char *op, const msa_tensor *t,
                                 const uint32_t box[], CUtensorMap *map)
{
    return encode(ctx, op, t, box, CU_TENSOR_MAP_SWIZZLE_NONE, map);
}
