/* Tiles of bf16 rows in shared memory for the warpgroup products of gradients: a tile serves as an
 * operand along its rows and across them, and a product in registers is the next one's left
 * operand. mma_tile.cuh is the same for warps.
 */
#ifndef MSA_CUDA_WGMMA_TILE_CUH
#define MSA_CUDA_WGMMA_TILE_CUH

#include "backend/cuda/mma_tile.cuh"

/* R rows of D elements, in atoms of 64 columns: wgmma reads an atom along its rows or across. */
template <int D, int R> struct atom_tile {
    enum { ATOM_BYTES = R * 128, BYTES = D / 64 * ATOM_BYTES };

    /* Rows row(i), NULL for zeros, by the CTA's THREADS, R or a multiple; copies still to be
     * committed. Neighbouring threads share a row, and ask for it once. */
    template <int THREADS, typename Row>
    static __device__ __forceinline__ void load(uint32_t tile, Row row)
    {
        constexpr int PER_ROW = THREADS / R;
        int r = threadIdx.x / PER_ROW;
        const __nv_bfloat16 *source = row(r);
#pragma unroll
        for (int i = 0; i < D / 8 / PER_ROW; i++) {
            int chunk = threadIdx.x % PER_ROW + i * PER_ROW;
            uint32_t to = tile_chunk<64>(tile + chunk / 8 * ATOM_BYTES, r, chunk % 8);
            if (source) {
                copy_async_16(to, source + chunk * 8);
            } else {
                store_shared_zero_16(to);
            }
        }
    }
    /* Descriptor of 16 columns from k on, rows from `row` on: rows are M or N. */
    static __device__ __forceinline__ uint64_t along(uint32_t tile, int row, int k)
    {
        return wgmma_desc(tile + k / 64 * ATOM_BYTES + row * 128 + k % 64 * 2, 16, 1024);
    }
    /* Descriptor of 16 rows from k on, columns from `column` on: rows are the sum's index. */
    static __device__ __forceinline__ uint64_t across(uint32_t tile, int k, int column)
    {
        return wgmma_desc(tile + column / 64 * ATOM_BYTES + k * 128 + column % 64 * 2, ATOM_BYTES,
                          1024);
    }
};

/* out = 64 rows of a tile of R times the 64 rows of another, over D; one group of products. */
template <int D, int R>
static __device__ __forceinline__ void rows_by_rows(uint32_t left, int first, uint32_t right,
                                                    float (&out)[32])
{
#pragma unroll
    for (int k = 0; k < D; k += 16) {
        wgmma_m64n64k16_ss(out, atom_tile<D, R>::along(left, first, k),
                           atom_tile<D, 64>::along(right, 0, k), k > 0);
    }
    wgmma_commit();
}

/* sum[64 x D] += X Y: X, 64 x 64 in bf16, are fragments in registers, Y 64 rows of a tile. */
template <int D>
static __device__ __forceinline__ void fragments_by_rows(const uint32_t (&x)[16], uint32_t tile,
                                                         float (&sum)[D / 2])
{
#pragma unroll
    for (int i = 0; i < 4; i++) {
        uint64_t rows = atom_tile<D, 64>::across(tile, i * 16, 0);
        if constexpr (D == 64) {
            wgmma_m64n64k16_rs<1>(sum, x[4 * i], x[4 * i + 1], x[4 * i + 2], x[4 * i + 3], rows, 1);
        } else {
            wgmma_m64n128k16_rs<1>(sum, x[4 * i], x[4 * i + 1], x[4 * i + 2], x[4 * i + 3], rows,
                                   1);
        }
    }
}

/* A product's element i is row row_of(i) of its warpgroup's 64, column column_of(i). */
static __device__ __forceinline__ int product_64_row(int i)
{
    return threadIdx.x / 32 % 4 * 16 + threadIdx.x % 32 / 4 + i / 2 % 2 * 8;
}
static __device__ __forceinline__ int product_64_column(int i)
{
    return i / 4 * 8 + threadIdx.x % 4 * 2 + i % 2;
}

/* A product as the left operand of the next one. */
static __device__ __forceinline__ void pack_fragments(const float (&x)[32], uint32_t (&out)[16])
{
#pragma unroll
    for (int i = 0; i < 16; i++) out[i] = pack_bf16(x[2 * i], x[2 * i + 1]);
}

#endif
