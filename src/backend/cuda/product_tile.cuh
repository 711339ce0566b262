/* What the kernels of a product share: rings of stages, expansion of MXFP8 tiles, outputs. */
#ifndef MSA_CUDA_PRODUCT_TILE_CUH
#define MSA_CUDA_PRODUCT_TILE_CUH

#include "backend/cuda/activation.cuh"
#include "backend/cuda/elements.cuh"
#include "backend/cuda/moe_route.cuh"
#include "backend/cuda/products.h"
#include "backend/cuda/ptx.cuh"

#define SEGMENT_STEPS 8  /* stages of 64 inputs */
#define WEIGHT_BOX    64 /* rows of a weight box */

typedef struct product_tile {
    const cuda_product_weights *weights;
    int32_t first_feature;     /* of the group's features */
    int32_t first_row, n_rows; /* n_rows 0: no tile is left */
} product_tile;

typedef struct ring {
    int stage, parity;
} ring;

template <int STAGES> __device__ __forceinline__ void advance(ring &r)
{
    if (++r.stage == STAGES) {
        r.stage = 0;
        r.parity ^= 1;
    }
}

/* 64 inputs of 64 weight rows from `feature` on; rows of a pair belong to half as many features. */
template <bool PAIR>
__device__ __forceinline__ void load_weight_box(uint32_t to, const CUtensorMap *map, uint32_t bar,
                                                int32_t step, int32_t feature)
{
    if (PAIR) {
        tma_load_4d(to, map, bar, step * 64, 0, 0, feature / 8);
    } else {
        tma_load_2d(to, map, bar, step * 64, feature);
    }
}

/* The 16 scale bytes of a segment of a row of the tile; past the end, the last one. */
template <bool PAIR>
__device__ __forceinline__ uint4 load_scales(const product_tile &tile, int row, int32_t segment)
{
    const cuda_product_weights *w = tile.weights;
    int which = PAIR ? row / 8 % 2 : 0;
    int32_t feature = tile.first_feature + (PAIR ? row / 16 * 8 + row % 8 : row);
    feature = min(feature, w->n_features - 1);
    const uint8_t *from = w->scales[which] + feature * w->scale_stride[which];
    int32_t first = segment * 16, n = w->n_in / 32;
    if (first + 16 <= n && (uintptr_t)(from + first) % 16 == 0) {
        return *(const uint4 *)(from + first);
    }
    uint32_t word[4] = {0, 0, 0, 0};
#pragma unroll
    for (int j = 0; j < 16; j++)
        word[j / 4] |= (uint32_t)from[min(first + j, n - 1)] << 8 * (j % 4);
    return make_uint4(word[0], word[1], word[2], word[3]);
}

/* Scale of inputs 32 j .. 32 j + 31 of the segment. */
__device__ __forceinline__ float scale_at(uint4 scales, int j)
{
    uint32_t word = j < 4 ? scales.x : j < 8 ? scales.y : j < 12 ? scales.z : scales.w;
    return e8m0_value((uint8_t)(word >> 8 * (j % 4)));
}

/* 16 MXFP8 elements to bf16: exact, both round trips included. */
__device__ __forceinline__ void expand16(uint4 raw, float scale, uint4 (&out)[2])
{
    uint32_t in[4] = {raw.x, raw.y, raw.z, raw.w}, words[8];
#pragma unroll
    for (int j = 0; j < 8; j++) {
        __half2_raw pair = __nv_cvt_fp8x2_to_halfraw2(
            (__nv_fp8x2_storage_t)(in[j / 2] >> 16 * (j % 2)), __NV_E4M3);
        float2 x = __half22float2(__half2(pair));
        words[j] = pack_bf16(x.x * scale, x.y * scale);
    }
    out[0] = make_uint4(words[0], words[1], words[2], words[3]);
    out[1] = make_uint4(words[4], words[5], words[6], words[7]);
}

/* Half a row (32 inputs, of one scale) of a raw tile (64 bytes a row, as in memory) to bf16 (128
 * bytes a row, bits 4-6 of the address flipped by bits 7-9). Neighbouring rows start at different
 * pieces: their accesses then fall into different banks. */
__device__ __forceinline__ void expand_half_row(unsigned char *a, const unsigned char *raw, int row,
                                                int half, float scale)
{
#pragma unroll
    for (int i = 0; i < 2; i++) {
        int c = half * 2 + (i + row / 4) % 2;
        uint4 out[2];
        expand16(*(const uint4 *)(raw + row * 64 + c * 16), scale, out);
#pragma unroll
        for (int h = 0; h < 2; h++) {
            int to = row * 128 + c * 32 + h * 16;
            *(uint4 *)(a + (to ^ (to >> 3 & 0x70))) = out[h];
        }
    }
}

__device__ __forceinline__ void store_out(float *at, float x)
{
    *at = x;
}
__device__ __forceinline__ void store_out(__nv_bfloat16 *at, float x)
{
    *at = __float2bfloat16_rn(x);
}
__device__ __forceinline__ void store_out(__half *at, float x)
{
    *at = __float2half_rn(x);
}

#endif
