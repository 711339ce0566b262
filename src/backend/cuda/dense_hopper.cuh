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
    int32_t next;     /* items taken, all heads */
    int32_t n_loaded; /* items whose tiles have all been asked for */
} dense_counts;

/* Sizes and addresses that host and device agree on. */
typedef struct dense_work {
    dense_batch batch;
    int32_t n_kv_heads, n_group, tile_tokens;
    int32_t max_splits;
    int32_t alone; /* one sequence, one row tile: split s of head h is CTA s * Hkv + h, there is no
                      list */
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

/* Item i of the sequence's n_row_tiles * n_splits; false where its split is empty. */
static __device__ __forceinline__ bool dense_make_item(const dense_work &work, int seq,
                                                       int first_token, int n_tokens, int n_splits,
                                                       int i, dense_item *item, int *n_used)
{
    int tile = i / n_splits, split = i % n_splits;
    int from = tile * work.tile_tokens;
    item->seq = seq;
    item->token = first_token + from;
    item->n_tokens = min(work.tile_tokens, n_tokens - from);
    item->position = dense_kv_length(work.batch, seq) - n_tokens + from; /* (M2) */
    dense_walk walk = dense_walk_of(work.batch, item->position, item->n_tokens);
    int total = walk.n_window + walk.n_sinks;
    int chunk = max(DENSE_MIN_TILES, (total + n_splits - 1) / n_splits);
    *n_used = (total + chunk - 1) / chunk;
    item->first = split * chunk;
    item->n_tiles = min(chunk, total - item->first);
    item->partial = -1;
    item->partial_step = n_splits;
    return item->n_tiles > 0;
}

/* Place of the partial of a split of the sequence's token `token`, from the sequence's first place.
 */
static __device__ __forceinline__ int dense_partial(int base, const dense_item &item, int token,
                                                    int split)
{
    return base + token * item.partial_step + split;
}

/* Split i of the only row tile of the only sequence; false: it is empty. n_used: splits that are
 * not. Nothing is asked before all three lengths are on their way. */
static __device__ __forceinline__ bool dense_lone_item(const dense_work &work, int i,
                                                       dense_item *item, int *n_used)
{
    int first_token = work.batch.cu_seqlens_q[0];
    int n_tokens = work.batch.cu_seqlens_q[1] - first_token;
    bool found = dense_make_item(work, 0, first_token, n_tokens, work.max_splits, i, item, n_used);
    if (n_tokens == 0) *n_used = 0;
    if (*n_used > 1) item->partial = dense_partial(0, *item, 0, i);
    return found && *n_used > 0;
}

/* Launch that may begin before the kernels ahead of it end: the kernel calls wait_prior_grid. */
template <typename... PARAMETERS, typename... ARGUMENTS>
static msa_status dense_launch(msa_context *ctx, void (*kernel)(PARAMETERS...), int n_ctas,
                               int n_threads, size_t shared_bytes, const ARGUMENTS &...arguments)
{
    MSA_TRY(cuda_share_sm("dense_attend", kernel, shared_bytes));
    cudaLaunchAttribute early = {};
    early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    early.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3((unsigned)n_ctas);
    config.blockDim = dim3((unsigned)n_threads);
    config.dynamicSmemBytes = shared_bytes;
    config.stream = cuda_stream(ctx);
    config.attrs = &early;
    config.numAttrs = 1;
    MSA_CUDA_TRY("dense_attend", cudaLaunchKernelEx(&config, kernel, arguments...));
    return MSA_OK;
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
