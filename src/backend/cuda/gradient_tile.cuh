/* Pieces of a gradient product on the tensor cores: what a CTA computes, a step of it by a
 * warpgroup, and its sums on their way to memory. */
#ifndef MSA_CUDA_GRADIENT_TILE_CUH
#define MSA_CUDA_GRADIENT_TILE_CUH

#include "backend/cuda/elements.cuh"
#include "backend/cuda/gradient_product.h"
#include "backend/cuda/mma_tile.cuh"

/* A step sums over DEPTH of k. Atoms of 64 rows or columns by DEPTH. */
enum { DEPTH = 64, ATOM_BYTES = 64 * DEPTH * 2 };

/* What a CTA computes: rows m..m_end of c, columns from n on, summed over k..k_end. */
typedef struct product_part {
    product_matrix a, b, c;
    int64_t m, m_end, n, k, k_end;
    msa_dtype c_dtype;
    int32_t accumulate;
} product_part;

/* The products of one step, 16 of k at a time: 64 rows of a by all columns. */
template <int COLUMNS, int A_ACROSS, int B_ACROSS>
static __device__ __forceinline__ void multiply_step(uint32_t a_tile, uint32_t b_tile,
                                                     float (&sum)[COLUMNS / 2])
{
    uint64_t a = wgmma_desc(a_tile, ATOM_BYTES, 1024), b = wgmma_desc(b_tile, ATOM_BYTES, 1024);
    constexpr int A_NEXT = A_ACROSS ? 16 * 128 / 16 : 16 * 2 / 16;
    constexpr int B_NEXT = B_ACROSS ? 16 * 128 / 16 : 16 * 2 / 16;
    pin(sum);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < DEPTH / 16; k++) {
        wgmma_ss<A_ACROSS, B_ACROSS>(sum, a + k * A_NEXT, b + k * B_NEXT);
    }
    wgmma_commit();
}

static __device__ __forceinline__ float2 load_pair(const product_matrix &c, msa_dtype dtype,
                                                   int64_t i)
{
    if (dtype == CUDA_F32) return *(const float2 *)((const float *)c.data + i);
    return unpack_pair(*(const uint32_t *)((const uint16_t *)c.data + i), dtype);
}

static __device__ __forceinline__ void store_pair(const product_matrix &c, msa_dtype dtype,
                                                  int64_t i, float x, float y)
{
    if (dtype == CUDA_F32) {
        *(float2 *)((float *)c.data + i) = make_float2(x, y);
    } else {
        *(uint32_t *)((uint16_t *)c.data + i) = pack_pair(x, y, dtype);
    }
}

/* c (+)= a thread's sums: warp `warp` of the CTA's tile has rows row and row + 8, pairs of columns.
 * Old values are read eight pairs at a time, so that they are on their way together. */
template <int N>
static __device__ __forceinline__ void put_sums(const product_part &part, int64_t n_end, int warp,
                                                const float (&sum)[N])
{
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        int64_t row = part.m + warp * 16 + lane / 4 + h * 8, first = part.n + lane % 4 * 2;
        if (row >= part.m_end) continue;
#pragma unroll
        for (int j = 0; j < N / 4; j += 8) {
            float2 old[8] = {};
#pragma unroll
            for (int i = 0; part.accumulate && i < 8; i++) {
                int64_t column = first + (j + i) * 8;
                if (column >= n_end) break;
                old[i] = load_pair(part.c, part.c_dtype, row * part.c.step + column);
            }
#pragma unroll
            for (int i = 0; i < 8; i++) {
                int64_t column = first + (j + i) * 8;
                const float *s = sum + (j + i) * 4 + h * 2;
                if (column >= n_end) break;
                store_pair(part.c, part.c_dtype, row * part.c.step + column, old[i].x + s[0],
                           old[i].y + s[1]);
            }
        }
    }
}

#endif
