/* What the kernels that own keys share (attend_backward_keys.cu, index_kl_keys.cu): every (query,
 * block) of a selection has a slot of its own, where the block's share of the query's gradient
 * goes. */
#ifndef MSA_CUDA_KEY_SLOTS_CUH
#define MSA_CUDA_KEY_SLOTS_CUH

#include "backend/cuda/gradient_schedule.cuh"
#include "backend/cuda/mma_tile.cuh"

enum { KEY_QUERIES = 64 }; /* of a step */

/* What the CTA owns. */
typedef struct key_owner {
    schedule_unit unit;
    int number, group;         /* of the unit, of the KV heads */
    int first_group, n_groups; /* that the slots have room for */
} key_owner;

/* Positions of queries first..end-1 (-1 beyond) and their slots (-1: none). A slot is counted in
 * (query, group of the slots, kept block, part of a block). */
static __device__ __forceinline__ void describe_queries(const gradient_schedule &s,
                                                        const msa_tensor &blocks,
                                                        const key_owner &owner, int first, int end,
                                                        int *positions, int64_t *slots)
{
    const schedule_unit &u = owner.unit;
    for (int i = threadIdx.x; i < KEY_QUERIES; i += blockDim.x) {
        positions[i] = -1;
        slots[i] = -1;
        if (first + i >= end) continue;
        int token = schedule_query(s, owner.group, first + i);
        positions[i] = u.first_position + token - u.first_query;
        if (!blocks.data) continue;
        int parts = s.block_size / s.tile_keys, block = owner.number / parts - s.block_base[u.seq];
        int n_kept = (int)blocks.shape[2], place = 0;
        const int32_t *row = (const int32_t *)blocks.data + token * blocks.stride[0] +
                             owner.group * blocks.stride[1];
        while (place < n_kept - 1 && row[place] != block) place++;
        int64_t of_group = (int64_t)token * owner.n_groups + owner.group - owner.first_group;
        slots[i] = (of_group * n_kept + place) * parts + owner.number % parts;
    }
}

/* A warp's 16 x KEY_QUERIES of a product into a tile, rows of keys. */
static __device__ __forceinline__ void store_rows(uint32_t tile, int first_row,
                                                  const float (&x)[KEY_QUERIES / 8][4])
{
#pragma unroll
    for (int j = 0; j < KEY_QUERIES / 8; j++) {
#pragma unroll
        for (int e = 0; e < 4; e += 2) {
            uint32_t chunk = tile_chunk<KEY_QUERIES>(tile, first_row + product_row(e), j);
            store_shared_32(chunk + product_column(0) * 2, pack_bf16(x[j][e], x[j][e + 1]));
        }
    }
}

/* The queries' X^T K, KEY_QUERIES x D, X the tile of store_rows, in pieces of 16 x 32 that go round
 * the warps. The row of slot i lies at out + (slots[i] * stride + offset) * D. */
template <int D>
static __device__ __forceinline__ void store_slots(uint32_t x_tile, uint32_t k_tile, int n_keys,
                                                   const int64_t *slots, int stride, int offset,
                                                   __nv_bfloat16 *out)
{
    constexpr int COLUMNS = 32;
    for (int piece = threadIdx.x / 32; piece < KEY_QUERIES / 16 * (D / COLUMNS);
         piece += blockDim.x / 32) {
        int m = piece % (KEY_QUERIES / 16) * 16, n = piece / (KEY_QUERIES / 16) * COLUMNS;
        float acc[COLUMNS / 8][4] = {};
        for (int k = 0; k < n_keys; k += 16) {
            uint32_t a[4];
            tile_a_across<KEY_QUERIES>(x_tile, m, k, a);
#pragma unroll
            for (int j = 0; j < COLUMNS / 8; j += 2) {
                uint32_t b[4];
                tile_b_across<D>(k_tile, n + j * 8, k, b);
                mma_m16n8k16(acc[j], a, b[0], b[1]);
                mma_m16n8k16(acc[j + 1], a, b[2], b[3]);
            }
        }
#pragma unroll
        for (int e = 0; e < 4; e += 2) {
            int64_t slot = slots[m + product_row(e)];
            if (slot < 0) continue;
            __nv_bfloat16 *row = out + (slot * stride + offset) * D + n + product_column(0);
#pragma unroll
            for (int j = 0; j < COLUMNS / 8; j++)
                *(uint32_t *)(row + j * 8) = pack_bf16(acc[j][e], acc[j][e + 1]);
        }
    }
}

/* A warp's 16 x D of a product into rows of D, times a factor. */
template <int D>
static __device__ __forceinline__ void store_keys(float *out, int first_row, float factor,
                                                  const float (&acc)[D / 8][4])
{
#pragma unroll
    for (int d = 0; d < D / 8; d++) {
#pragma unroll
        for (int e = 0; e < 4; e += 2) {
            float *row = out + (first_row + product_row(e)) * D + d * 8 + product_column(0);
            *(float2 *)row = make_float2(acc[d][e] * factor, acc[d][e + 1] * factor);
        }
    }
}

#endif
