/* Tiles of bf16 rows in shared memory, and their fragments for the warp-level matrix products.
 *
 * A tile has rows of D elements (32, 64 or 128), cut into 16-byte chunks that are exchanged inside
 * a row so that eight neighbouring rows of one column hit all banks. An operand is read from a tile
 * in either direction: along its rows, or across them (the _across functions), so that one tile
 * serves as Q in Q K^T and as Q in dS^T Q.
 */
#ifndef MSA_CUDA_MMA_TILE_CUH
#define MSA_CUDA_MMA_TILE_CUH

#include "backend/cuda/ptx.cuh"
#include "msa/tensor.h"

template <int D> __device__ __forceinline__ uint32_t tile_chunk(uint32_t tile, int row, int chunk)
{
    int exchange = D >= 64 ? row & 7 : row >> 1 & 3;
    return tile + row * (D * 2) + (chunk ^ exchange) * 16;
}

/* Row of a bf16 tensor [T, heads, D] or [T, D]. */
__device__ __forceinline__ const __nv_bfloat16 *bf16_row(const msa_tensor &t, int64_t token,
                                                         int64_t head)
{
    int64_t of_head = t.n_dims == 3 ? head * t.stride[1] : 0;
    return (const __nv_bfloat16 *)t.data + token * t.stride[0] + of_head;
}

/* Rows row(i), i = 0..n_rows-1, into a tile, by all threads of the CTA; NULL gives zeros. The
 * copies are one group of the thread's asynchronous copies, still to be committed. */
template <int D, typename Row>
__device__ __forceinline__ void tile_load(uint32_t tile, int n_rows, Row row)
{
    constexpr int CHUNKS = D / 8;
    for (int i = threadIdx.x; i < n_rows * CHUNKS; i += blockDim.x) {
        const __nv_bfloat16 *source = row(i / CHUNKS);
        uint32_t to = tile_chunk<D>(tile, i / CHUNKS, i % CHUNKS);
        if (source) {
            copy_async_16(to, source + i % CHUNKS * 8);
        } else {
            store_shared_zero_16(to);
        }
    }
}

/* A, 16 x 16, element (m, k): rows of the tile are m. */
template <int D>
__device__ __forceinline__ void tile_a(uint32_t tile, int m, int k, uint32_t (&a)[4])
{
    int lane = threadIdx.x % 32;
    ldmatrix_x4(tile_chunk<D>(tile, m + lane % 16, k / 8 + lane / 16), a);
}

/* A, 16 x 16: rows of the tile are k. */
template <int D>
__device__ __forceinline__ void tile_a_across(uint32_t tile, int m, int k, uint32_t (&a)[4])
{
    int lane = threadIdx.x % 32;
    ldmatrix_x4_trans(tile_chunk<D>(tile, k + lane % 8 + lane / 16 * 8, m / 8 + lane / 8 % 2), a);
}

/* B of two products, 16 x 8 each, element (k, n): rows of the tile are n. b[0..1] for n, b[2..3]
 * for n + 8. */
template <int D>
__device__ __forceinline__ void tile_b(uint32_t tile, int n, int k, uint32_t (&b)[4])
{
    int lane = threadIdx.x % 32;
    ldmatrix_x4(tile_chunk<D>(tile, n + lane % 8 + lane / 16 * 8, k / 8 + lane / 8 % 2), b);
}

/* The same: rows of the tile are k. */
template <int D>
__device__ __forceinline__ void tile_b_across(uint32_t tile, int n, int k, uint32_t (&b)[4])
{
    int lane = threadIdx.x % 32;
    ldmatrix_x4_trans(tile_chunk<D>(tile, k + lane % 16, n / 8 + lane / 16), b);
}

/* Row and column of element e of a thread's part of a 16 x 8 product. */
__device__ __forceinline__ int product_row(int e)
{
    return threadIdx.x % 32 / 4 + e / 2 * 8;
}
__device__ __forceinline__ int product_column(int e)
{
    return threadIdx.x % 4 * 2 + e % 2;
}

/* acc[16 x 8 N] += A B^T over D: 16 rows of tile a from m on, 8 N rows of tile b from n on. */
template <int D, int N>
__device__ __forceinline__ void tile_multiply(uint32_t a_tile, int m, uint32_t b_tile, int n,
                                              float (&acc)[N][4])
{
#pragma unroll
    for (int k = 0; k < D; k += 16) {
        uint32_t a[4];
        tile_a<D>(a_tile, m, k, a);
#pragma unroll
        for (int j = 0; j < N; j += 2) {
            uint32_t b[4];
            tile_b<D>(b_tile, n + j * 8, k, b);
            mma_m16n8k16(acc[j], a, b[0], b[1]);
            mma_m16n8k16(acc[j + 1], a, b[2], b[3]);
        }
    }
}

/* acc[16 x D] += X B: X, 16 x 8 N, is a product still in registers, rounded to bf16 here; B's rows
 * are 8 N rows of a tile. */
template <int D, int N>
__device__ __forceinline__ void tile_multiply_registers(const float (&x)[N][4], uint32_t b_tile,
                                                        float (&acc)[D / 8][4])
{
#pragma unroll
    for (int j = 0; j < N; j += 2) {
        uint32_t a[4] = {pack_bf16(x[j][0], x[j][1]), pack_bf16(x[j][2], x[j][3]),
                         pack_bf16(x[j + 1][0], x[j + 1][1]), pack_bf16(x[j + 1][2], x[j + 1][3])};
#pragma unroll
        for (int d = 0; d < D / 8; d += 2) {
            uint32_t b[4];
            tile_b_across<D>(b_tile, d * 8, j * 8, b);
            mma_m16n8k16(acc[d], a, b[0], b[1]);
            mma_m16n8k16(acc[d + 1], a, b[2], b[3]);
        }
    }
}

#endif
