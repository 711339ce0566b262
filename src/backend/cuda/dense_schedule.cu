/* The work list of dense attention, made on the device from the lengths: one CTA.
 *
 * Two passes over all items: count them by cost, then place them so that costs descend. An item's
 * cost is its number of key tiles, in classes of 3 %. The order inside a class is left to chance:
 * it decides which SM computes an item, never what it computes.
 */
#include "backend/cuda/dense_hopper.cuh"
#include "backend/cuda/ptx.cuh"

enum { THREADS = 1024, WARPS = THREADS / 32, CLASSES = 1024 };

/* Larger costs come first: exponent and five bits of the mantissa, reversed. */
static __device__ int cost_class(int n_tiles)
{
    return CLASSES - 1 - ((__float_as_int((float)n_tiles) - 0x3f800000) >> 18);
}

/* Where the partials of an item's tokens go; its first split tells the merge. */
static __device__ void place_partials(const dense_work &work, dense_item *item, int base,
                                      int first_token, int split, int n_used)
{
    int from = item->token - first_token;
    item->partial = dense_partial(base, *item, from, split);
    if (split != 0) return;
    int place = atomicAdd(&work.counts->n_cuts, item->n_tokens);
    for (int t = 0; t < item->n_tokens; t++) {
        dense_cut cut = {item->token + t, dense_partial(base, *item, from + t, 0), n_used, 0};
        work.cuts[place + t] = cut;
    }
}

/* Warps share sequences while there are few, else each takes every 32nd. */
template <bool PLACE>
static __device__ void visit_items(const dense_work &work, int *class_place, int *n_partials)
{
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int warps_per_seq = work.batch.n_seqs < WARPS ? WARPS / work.batch.n_seqs : 1;
    for (int seq = warp / warps_per_seq; seq < work.batch.n_seqs; seq += WARPS / warps_per_seq) {
        int first_token = work.batch.cu_seqlens_q[seq];
        int n_tokens = work.batch.cu_seqlens_q[seq + 1] - first_token;
        int n_row_tiles = (n_tokens + work.tile_tokens - 1) / work.tile_tokens;
        if (n_tokens == 0) continue;
        int n_splits = max(1, work.max_splits / n_row_tiles);
        int part = warp % warps_per_seq, base = 0;
        if (PLACE && n_splits > 1) {
            /* One row tile after the other, so few of them: the first warp does all. */
            if (part > 0) continue;
            if (lane == 0) base = atomicAdd(n_partials, n_tokens * n_splits);
            base = __shfl_sync(~0u, base, 0);
        }
        int step = PLACE && n_splits > 1 ? 32 : 32 * warps_per_seq;
        for (int i = part * 32 + lane; i < n_row_tiles * n_splits; i += step) {
            dense_item item;
            int n_used;
            if (!dense_make_item(work, seq, first_token, n_tokens, n_splits, i, &item, &n_used))
                continue;
            int place = atomicAdd(&class_place[cost_class(item.n_tiles)], 1);
            if (!PLACE) continue;
            if (n_used > 1) {
                place_partials(work, &item, base, first_token, i % n_splits, n_used);
            }
            work.items[place] = item;
        }
    }
}

/* Sum over the threads before this one, of one value a thread. */
static __device__ int exclusive_sum(int x, int *warp_sums)
{
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, sum = x;
    for (int d = 1; d < 32; d *= 2) {
        int below = __shfl_up_sync(~0u, sum, d);
        if (lane >= d) sum += below;
    }
    if (lane == 31) warp_sums[warp] = sum;
    __syncthreads();
    int before = lane < warp ? warp_sums[lane] : 0;
    for (int d = 16; d; d /= 2) before += __shfl_xor_sync(~0u, before, d);
    return before + sum - x;
}

static __global__ void __launch_bounds__(THREADS)
    dense_schedule_kernel(const __grid_constant__ dense_work work)
{
    __shared__ int class_place[CLASSES], warp_sums[WARPS], n_partials;
    int t = threadIdx.x;
    launch_dependents(); /* they wait for the list on the device */
    class_place[t] = 0;
    wait_prior_grid();
    if (t == 0) {
        n_partials = 0;
        work.counts->n_cuts = 0;
        work.counts->next = 0;
        work.counts->n_loaded = 0;
    }
    __syncthreads();
    visit_items<false>(work, class_place, NULL);
    __syncthreads();
    int count = class_place[t], place = exclusive_sum(count, warp_sums);
    if (t == CLASSES - 1) work.counts->n_items = place + count;
    class_place[t] = place;
    __syncthreads();
    visit_items<true>(work, class_place, &n_partials);
}

msa_status cuda_dense_schedule(msa_context *ctx, const dense_work *work)
{
    return dense_launch(ctx, dense_schedule_kernel, 1, THREADS, 0, *work);
}
