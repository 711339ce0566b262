/* The products of a MoE in plain f32, for any dtype and stride: a warp multiplies a few weight rows
 * with 8 rows of one expert. */
#include "backend/cuda/activation.cuh"
#include "backend/cuda/moe.h"

#define WARPS 8
#define WIDTH 8 /* rows of a tile */

#define HIDDEN_ROWS 2 /* of gate and of up, a warp */
__global__ void __launch_bounds__(WARPS * 32)
    moe_plain_hidden_kernel(moe_piece piece, const cuda_mlp *table)
{
    moe_tile tile = find_tile(piece.route.start, piece.route.n_experts + 1, WIDTH, blockIdx.y);
    const cuda_mlp *mlp = &table[tile.expert];
    int64_t first = ((int64_t)blockIdx.x * WARPS + threadIdx.x / 32) * HIDDEN_ROWS;
    if (tile.n_rows == 0 || first >= mlp->gate.n_out) return;
    int32_t row[HIDDEN_ROWS], x_row[WIDTH];
    float gate[HIDDEN_ROWS][WIDTH], up[HIDDEN_ROWS][WIDTH];
#pragma unroll
    for (int r = 0; r < HIDDEN_ROWS; r++) row[r] = (int32_t)min(first + r, mlp->gate.n_out - 1l);
#pragma unroll
    for (int c = 0; c < WIDTH; c++) {
        x_row[c] = piece.route.token[tile.first_row + min(c, tile.n_rows - 1)];
    }
    warp_products<HIDDEN_ROWS, WIDTH>(mlp->gate, row, piece.x, x_row, piece.n_in, gate);
    warp_products<HIDDEN_ROWS, WIDTH>(mlp->up, row, piece.x, x_row, piece.n_in, up);
#pragma unroll
    for (int r = 0; r < HIDDEN_ROWS; r++)
#pragma unroll
        for (int c = 0; c < WIDTH; c++) {
            if (threadIdx.x % 32 != r * WIDTH + c) continue;
            if (first + r >= mlp->gate.n_out || c >= tile.n_rows) continue;
            float y[1] = {activate(piece.activation, gate[r][c], up[r][c])};
            store_elements<1>(piece.hidden, piece.x.dtype,
                              (tile.first_row + c) * piece.hidden_stride + first + r, y);
        }
}

#define DOWN_ROWS 4
__global__ void __launch_bounds__(WARPS * 32)
    moe_plain_down_kernel(moe_piece piece, const cuda_mlp *table)
{
    moe_tile tile = find_tile(piece.route.start, piece.route.n_experts + 1, WIDTH, blockIdx.y);
    const cuda_mlp *mlp = &table[tile.expert];
    int64_t first = ((int64_t)blockIdx.x * WARPS + threadIdx.x / 32) * DOWN_ROWS;
    if (tile.n_rows == 0 || first >= piece.n_slice) return;
    cuda_view hidden = {piece.hidden, {piece.hidden_stride, 0}, piece.x.dtype};
    int32_t row[DOWN_ROWS], hidden_row[WIDTH];
    float sum[DOWN_ROWS][WIDTH];
#pragma unroll
    for (int r = 0; r < DOWN_ROWS; r++)
        row[r] = (int32_t)(piece.slice + min(first + r, piece.n_slice - 1));
#pragma unroll
    for (int c = 0; c < WIDTH; c++) hidden_row[c] = tile.first_row + min(c, tile.n_rows - 1);
    warp_products<DOWN_ROWS, WIDTH>(mlp->down, row, hidden, hidden_row, mlp->gate.n_out, sum);
#pragma unroll
    for (int r = 0; r < DOWN_ROWS; r++)
#pragma unroll
        for (int c = 0; c < WIDTH; c++) {
            if (threadIdx.x % 32 != r * WIDTH + c) continue;
            if (first + r >= piece.n_slice || c >= tile.n_rows) continue;
            piece.partial[(int64_t)(tile.first_row + c) * piece.slice_stride + first + r] =
                sum[r][c];
        }
}

static unsigned n_tiles(const moe_piece *piece)
{
    const moe_route *route = &piece->route;
    return (unsigned)moe_max_tiles(route->n_tokens, route->topk, route->n_experts,
                                   route->has_shared, WIDTH);
}

void cuda_moe_plain_hidden(const moe_piece *piece, const cuda_mlp *table, cudaStream_t stream)
{
    int64_t per_block = WARPS * HIDDEN_ROWS;
    dim3 grid((unsigned)((piece->n_hidden + per_block - 1) / per_block), n_tiles(piece));
    moe_plain_hidden_kernel<<<grid, WARPS * 32, 0, stream>>>(*piece, table);
}

void cuda_moe_plain_down(const moe_piece *piece, const cuda_mlp *table, cudaStream_t stream)
{
    int64_t per_block = WARPS * DOWN_ROWS;
    dim3 grid((unsigned)((piece->n_slice + per_block - 1) / per_block), n_tiles(piece));
    moe_plain_down_kernel<<<grid, WARPS * 32, 0, stream>>>(*piece, table);
}
