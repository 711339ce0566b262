/* Steps of a mix on tensor cores; see lightning.h.
 *
 * A CTA of four warps owns a segment of a head and 64 columns of z, and walks over the segment 64
 * rows at a time. The state's columns stay in registers, f32, D / 4 of its rows a warp; in shared
 * memory it lies as two bf16, what rounding leaves of the first being the second: a state is a sum
 * over thousands of tokens, of which single ones must not vanish. Of a chunk
 *
 *     out = decays x (x state) + (triangle of x y^T with decays) z
 *     state = w^n state + y^T (z with decays)
 *
 * where x, y, z (after SiLU), the triangle and z with decays are rounded to bf16.
 */
#include "backend/cuda/lightning.cuh"
#include "backend/cuda/mma_tile.cuh"

enum { THREADS = 128, ROWS = 64, COLUMNS = 64 };

/* Tiles of a CTA, as offsets into its shared memory. */
template <int D> struct chunk_tiles {
    enum {
        X = 0,
        Y = X + ROWS * D * 2,
        STATE = Y + ROWS * D * 2, /* [D, COLUMNS] twice */
        Z = STATE + 2 * D * COLUMNS * 2,
        Z_LATER = Z + ROWS * COLUMNS * 2, /* with its decays up to the chunk's end */
        DECAYS = Z_LATER + ROWS * COLUMNS * 2,
        BYTES = DECAYS + (ROWS + 1) * 4
    };
};

/* Eight neighbours of a row at a time: columns first..first+W-1 of the chunk's rows into a tile;
 * zeros past the rows. */
template <int W>
static __device__ __forceinline__ void
load_tile(const lightning_operand &from, const lightning_segment &s, int row, int n_rows, int first,
          unsigned char *shared, int tile, int later, const float *decays)
{
    for (int i = threadIdx.x; i < ROWS * W / 8; i += THREADS) {
        int r = i / (W / 8), chunk = i % (W / 8);
        float x[8] = {0};
        if (r < n_rows) {
            int64_t token = s.first + (row + r) * s.step;
            load_elements<8>(from.view.data, CUDA_BF16,
                             token * from.view.stride[0] + (int)blockIdx.y * from.view.stride[1] +
                                 first + chunk * 8,
                             x);
        }
#pragma unroll
        for (int e = 0; from.silu && e < 8; e++) x[e] = __fdividef(x[e], 1 + __expf(-x[e]));
        unsigned char *to = shared + tile_chunk<W>(0, r, chunk);
        store_elements<8>(to + tile, CUDA_BF16, 0, x);
        if (!later) continue;
        float decay = r < n_rows ? decays[n_rows - 1 - r] : 0;
#pragma unroll
        for (int e = 0; e < 8; e++) x[e] *= decay;
        store_elements<8>(to + later, CUDA_BF16, 0, x);
    }
}

/* The 16 rows of a warp. */
template <int D>
static __device__ __forceinline__ void write_rows(const lightning_mix &mix,
                                                  const lightning_segment &s, int row, int n_rows,
                                                  uint32_t tiles, const float *decays)
{
    using T = chunk_tiles<D>;
    int m = threadIdx.x / 32 * 16;
    float out[COLUMNS / 8][4] = {}, p[ROWS / 8][4] = {};
#pragma unroll
    for (int k = 0; k < D; k += 16) {
        uint32_t a[4], b[4];
        tile_a<D>(tiles + T::X, m, k, a);
#pragma unroll
        for (int j = 0; j < COLUMNS / 8; j += 2) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                tile_b_across<COLUMNS>(tiles + T::STATE, j * 8, k + half * D, b);
                mma_m16n8k16(out[j], a, b[0], b[1]);
                mma_m16n8k16(out[j + 1], a, b[2], b[3]);
            }
        }
#pragma unroll
        for (int j = 0; j < ROWS / 8; j += 2) {
            if (j * 8 > m) continue; /* above the diagonal */
            tile_b<D>(tiles + T::Y, j * 8, k, b);
            mma_m16n8k16(p[j], a, b[0], b[1]);
            mma_m16n8k16(p[j + 1], a, b[2], b[3]);
        }
    }
#pragma unroll
    for (int j = 0; j < COLUMNS / 8; j++) {
#pragma unroll
        for (int e = 0; e < 4; e++) {
            int r = m + product_row(e), since = r - (j * 8 + product_column(e));
            out[j][e] *= decays[r + 1];
            p[j][e] = since >= 0 ? p[j][e] * decays[since] : 0;
        }
    }
    tile_multiply_registers<COLUMNS, ROWS / 8>(p, tiles + T::Z, out);
#pragma unroll
    for (int j = 0; j < COLUMNS / 8; j++) {
#pragma unroll
        for (int e = 0; e < 4; e++) {
            int r = m + product_row(e), column = (int)blockIdx.z * COLUMNS + j * 8;
            if (r >= n_rows) continue;
            put_result(mix, s.first + (row + r) * s.step, blockIdx.y, column + product_column(e),
                       out[j][e]);
        }
    }
}

/* The state's rows of a warp: D / 64 pieces of 16. */
template <int D> struct warp_state {
    float sums[D / 64][COLUMNS / 8][4];
};

template <int D> static __device__ __forceinline__ int state_row(int piece, int e)
{
    return threadIdx.x / 32 * (D / 4) + piece * 16 + product_row(e);
}

template <int D>
static __device__ __forceinline__ void advance(warp_state<D> &state, uint32_t tiles, float decay)
{
    using T = chunk_tiles<D>;
#pragma unroll
    for (int piece = 0; piece < D / 64; piece++) {
#pragma unroll
        for (int j = 0; j < COLUMNS / 8; j++) {
#pragma unroll
            for (int e = 0; e < 4; e++) state.sums[piece][j][e] *= decay;
        }
    }
#pragma unroll
    for (int k = 0; k < ROWS; k += 16) {
#pragma unroll
        for (int j = 0; j < COLUMNS / 8; j += 2) {
            uint32_t b[4];
            tile_b_across<COLUMNS>(tiles + T::Z_LATER, j * 8, k, b);
#pragma unroll
            for (int piece = 0; piece < D / 64; piece++) {
                uint32_t a[4];
                tile_a_across<D>(tiles + T::Y, state_row<D>(piece, 0) - product_row(0), k, a);
                mma_m16n8k16(state.sums[piece][j], a, b[0], b[1]);
                mma_m16n8k16(state.sums[piece][j + 1], a, b[2], b[3]);
            }
        }
    }
}

/* Two neighbours of the state, and below them what rounding leaves of them. */
template <int D>
static __device__ __forceinline__ void round_pair(uint32_t tile, int row, int j, float a, float b)
{
    uint32_t pair = pack_bf16(a, b), in_chunk = product_column(0) * 2;
    float2 rounded = unpack_pair(pair, CUDA_BF16);
    store_shared_32(tile_chunk<COLUMNS>(tile, row, j) + in_chunk, pair);
    store_shared_32(tile_chunk<COLUMNS>(tile, row + D, j) + in_chunk,
                    pack_bf16(a - rounded.x, b - rounded.y));
}

/* The state as the next chunk's rows meet it. */
template <int D>
static __device__ __forceinline__ void split_state(const warp_state<D> &state, uint32_t tiles)
{
    uint32_t tile = tiles + chunk_tiles<D>::STATE;
#pragma unroll
    for (int piece = 0; piece < D / 64; piece++) {
#pragma unroll
        for (int j = 0; j < COLUMNS / 8; j++) {
            const float(&x)[4] = state.sums[piece][j];
            round_pair<D>(tile, state_row<D>(piece, 0), j, x[0], x[1]);
            round_pair<D>(tile, state_row<D>(piece, 2), j, x[2], x[3]);
        }
    }
}

template <int D>
static __device__ __forceinline__ void read_state(warp_state<D> &state, const lightning_state &from)
{
#pragma unroll
    for (int piece = 0; piece < D / 64; piece++) {
#pragma unroll
        for (int j = 0; j < COLUMNS / 8; j++) {
#pragma unroll
            for (int e = 0; e < 4; e++) {
                int column = (int)blockIdx.z * COLUMNS + j * 8 + product_column(e);
                state.sums[piece][j][e] =
                    from.data ? from.data[state_row<D>(piece, e) * from.stride + column] : 0;
            }
        }
    }
}

template <int D>
static __device__ __forceinline__ void write_state(const warp_state<D> &state,
                                                   const lightning_state &to)
{
#pragma unroll
    for (int piece = 0; piece < D / 64; piece++) {
#pragma unroll
        for (int j = 0; j < COLUMNS / 8; j++) {
#pragma unroll
            for (int e = 0; e < 4; e++) {
                int column = (int)blockIdx.z * COLUMNS + j * 8 + product_column(e);
                to.data[state_row<D>(piece, e) * to.stride + column] = state.sums[piece][j][e];
            }
        }
    }
}

template <int D, bool OUTPUTS>
static __global__ void __launch_bounds__(THREADS, D == 64 ? 4 : 2)
    chunks_kernel(const __grid_constant__ lightning_mix mix)
{
    using T = chunk_tiles<D>;
    extern __shared__ __align__(128) unsigned char shared[];
    uint32_t tiles = smem_u32(shared);
    float *decays = (float *)(shared + T::DECAYS);
    lightning_segment s = segment_at(mix, blockIdx.x);
    int head = blockIdx.y;
    if (s.seq < 0 || (!OUTPUTS && s.number + 1 == s.n_of_seq)) return;
    lightning_state before = {NULL, 0}, after = state_after(mix, s, head, OUTPUTS);
    if (OUTPUTS) before = state_before(mix, s, head);
    warp_state<D> state;
    read_state(state, before);
    if (OUTPUTS) split_state(state, tiles);
    if (threadIdx.x <= ROWS) decays[threadIdx.x] = expf(-mix.slopes[head] * threadIdx.x);
    __syncthreads();
    for (int row = 0; row < s.n_rows; row += ROWS) {
        int n_rows = min((int)ROWS, s.n_rows - row);
        if (OUTPUTS) load_tile<D>(mix.x, s, row, n_rows, 0, shared, T::X, 0, decays);
        load_tile<D>(mix.y, s, row, n_rows, 0, shared, T::Y, 0, decays);
        load_tile<COLUMNS>(mix.z, s, row, n_rows, (int)blockIdx.z * COLUMNS, shared, T::Z,
                           T::Z_LATER, decays);
        __syncthreads();
        if (OUTPUTS && (int)threadIdx.x / 32 * 16 < n_rows) {
            write_rows<D>(mix, s, row, n_rows, tiles, decays);
        }
        advance(state, tiles, decays[n_rows]);
        __syncthreads(); /* nobody reads the tiles any more */
        if (OUTPUTS) split_state(state, tiles);
    }
    if (after.data) write_state(state, after);
}

template <int D, bool OUTPUTS> static msa_status launch(msa_context *ctx, const lightning_mix *mix)
{
    int bytes = chunk_tiles<D>::BYTES;
    auto kernel = chunks_kernel<D, OUTPUTS>;
    MSA_CUDA_TRY("lightning",
                 cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
    dim3 grid((unsigned)(mix->n_tokens / SEGMENT + mix->n_seqs), (unsigned)mix->n_heads,
              (unsigned)(D / COLUMNS));
    kernel<<<grid, THREADS, bytes, cuda_stream(ctx)>>>(*mix);
    return cuda_launched("lightning");
}

msa_status lightning_chunks(msa_context *ctx, const lightning_mix *mix, int outputs)
{
    if (mix->dim == 64) return outputs ? launch<64, true>(ctx, mix) : launch<64, false>(ctx, mix);
    return outputs ? launch<128, true>(ctx, mix) : launch<128, false>(ctx, mix);
}
