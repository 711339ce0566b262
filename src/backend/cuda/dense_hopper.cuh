/* Work of the Hopper kernels: items, their walk over key tiles, and the workspace that holds them.
 *
 * An item is a tile of 128 rows (the G heads of floor(128 / G) neighbouring tokens, row = token * G
 * + head) of one sequence and KV head, and a run of tiles of 128 keys. Few rows over many keys are
 * cut into several items whose partial results a second kernel merges, (M12). How a row is cut
 * follows from its sequence's two lengths alone, so its bits do not depend on the rest of the
 * batch.
 */
#ifndef MSA_CUDA_DENSE_HOPPER_CUH
#define MSA_CUDA_DENSE_HOPPER_CUH

#include "backend/cuda/dense_attend.cuh"

enum { DENSE_ROWS = 128, DENSE_KEYS = 128, DENSE_MIN_TILES = 2 };

#define DENSE_LOG2_E 1.4426950408889634f
#define DENSE_LN_2   0.6931471805599453f

typedef struct dense_item {
    int32_t seq, token, n_tokens; /* first token of the tile among all T, and how many */
    int32_t position;             /* of that token */
    int32_t first, n_tiles;       /* its part of the walk */
    int32_t partial; /* -1: writes its rows; else the first token's place among partials */
    int32_t partial_step;
} dense_item;

/* A token whose rows were cut: partials [first, first + n) are merged. */
typedef struct dense_cut {
    int32_t token, first, n, reserved;
} dense_cut;

typedef struct dense_counts {
    int32_t n_items; /* per KV head */
    int32_t n_cuts;
    int32_t next; /* items taken, all heads */
    int32_t n_partials;
} dense_counts;

/* Sizes and addresses that host and device agree on. */
typedef struct dense_work {
    dense_batch batch;
    int32_t n_kv_heads, n_group, tile_tokens;
    int32_t max_splits;
    dense_counts *counts;
    dense_item *items;
    dense_cut *cuts;
    float2 *partial_stats; /* [partial, Hq]: maximum in base 2, sum */
    float *partial_out;    /* [partial, Hq, D], not divided by the sum */
} dense_work;

/* Tiles a row tile visits, newest first: those of the window, then those of the sink tokens. */
typedef struct dense_walk {
    int32_t newest, n_window, n_sinks;
} dense_walk;

static __device__ __forceinline__ dense_walk dense_walk_of(const dense_batch &batch, int position,
                                                           int n_tokens)
{
    dense_walk walk;
    int oldest = position < batch.window ? 0 : (position - batch.window + 1) / DENSE_KEYS;
    int sinks = batch.n_sink_tokens / DENSE_KEYS + (batch.n_sink_tokens % DENSE_KEYS != 0);
    walk.newest = (position + n_tokens - 1) / DENSE_KEYS;
    walk.n_window = walk.newest - oldest + 1;
    walk.n_sinks = sinks < oldest ? sinks : oldest;
    return walk;
}

static __device__ __forceinline__ int dense_walk_tile(const dense_walk &walk, int i)
{
    return i < walk.n_window ? walk.newest - i : walk.n_sinks - 1 - (i - walk.n_window);
}

/* Launch that may begin before the kernels ahead of it end: the kernel calls wait_prior_grid. */
static inline void dense_launch_config(const msa_context *ctx, int n_ctas, int n_threads,
                                       size_t shared_bytes, cudaLaunchConfig_t *config,
                                       cudaLaunchAttribute *early)
{
    early->id = cudaLaunchAttributeProgrammaticStreamSerialization;
    early->val.programmaticStreamSerializationAllowed = 1;
    *config = {};
    config->gridDim = dim3((unsigned)n_ctas);
    config->blockDim = dim3((unsigned)n_threads);
    config->dynamicSmemBytes = shared_bytes;
    config->stream = cuda_stream(ctx);
    config->attrs = early;
    config->numAttrs = 1;
}

/* Fill the work list: heavy items first. */
msa_status cuda_dense_schedule(msa_context *ctx, const dense_work *work);
/* Merge the partials of rows that were cut. */
msa_status cuda_dense_merge(msa_context *ctx, const msa_dense_attend_args *args,
                            const dense_work *work);

/* Whether the Hopper kernels take these arguments; their workspace; the run. */
int cuda_dense_hopper_fits(const msa_dense_attend_args *args);
size_t cuda_dense_hopper_workspace(const msa_context *ctx, const msa_dense_attend_args *args);
msa_status cuda_dense_hopper(msa_context *ctx, const msa_dense_attend_args *args, void *workspace);

#endif
