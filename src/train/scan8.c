/* See scan8.h. Every query looked at is a sequence of its own, one token long, over the pages of
 * the keys before it; the reference backend does what the equations say. */
#include "train/scan8.h"

#include "base/arena.h"
#include "base/error.h"
#include "base/numeric.h"
#include "base/rng.h"
#include "msa/attention.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct scan {
    const msa__config *config;
    msa_context *ctx; /* reference backend */
    int64_t n_tokens, n_pages, n_queries;
    float *q;                          /* [n_queries, Hkv, Di] */
    float *k;                          /* [n_pages, P, Di] */
    uint8_t *k_fp8;                    /* the same */
    int8_t *keys;                      /* the eight-bit copy, and its bounds */
    float *bounds;                     /* [n_pages, 3] */
    int32_t *page_table;               /* [n_queries, n_pages] */
    int32_t *cu_seqlens, *kv_lens;     /* of the queries */
    int32_t *exact, *fp8, *n_rescored; /* [n_queries, Hkv, K], twice; [n_queries, Hkv] */
} scan;

static void lay_out(scan *s, msa__arena *arena)
{
    const msa__config *c = s->config;
    int64_t rows = s->n_queries * c->n_kv_heads, ids = rows * c->topk_blocks;
    int64_t keys = s->n_pages * c->block_size * c->index_dim;
    s->q = msa__arena_take(arena, rows * c->index_dim, sizeof(*s->q));
    s->k = msa__arena_take(arena, keys, sizeof(*s->k));
    s->k_fp8 = msa__arena_take(arena, keys, sizeof(*s->k_fp8));
    s->keys = msa__arena_take(arena, keys, sizeof(*s->keys));
    s->bounds = msa__arena_take(arena, s->n_pages * 3, sizeof(*s->bounds));
    s->page_table = msa__arena_take(arena, s->n_queries * s->n_pages, sizeof(*s->page_table));
    s->cu_seqlens = msa__arena_take(arena, s->n_queries + 1, sizeof(*s->cu_seqlens));
    s->kv_lens = msa__arena_take(arena, s->n_queries, sizeof(*s->kv_lens));
    s->exact = msa__arena_take(arena, ids, sizeof(*s->exact));
    s->fp8 = msa__arena_take(arena, ids, sizeof(*s->fp8));
    s->n_rescored = msa__arena_take(arena, rows, sizeof(*s->n_rescored));
}

/* ---- one set of queries and keys ---------------------------------------------------------- */

static msa_kv_view view_of(const scan *s, const void *k, msa_dtype dtype)
{
    const msa__config *c = s->config;
    msa_kv_view view = {0};
    view.k_index = msa_tensor_make(k, dtype, 3, s->n_pages, c->block_size, c->index_dim, 0);
    view.page_table = s->page_table;
    view.page_table_stride = s->n_pages;
    view.kv_lens = s->kv_lens;
    view.n_seqs = (int32_t)s->n_queries;
    return view;
}

static msa_index8 copy_of(const scan *s)
{
    const msa__config *c = s->config;
    return (msa_index8){
        msa_tensor_make(s->keys, MSA_DTYPE_I8, 3, s->n_pages, c->block_size, c->index_dim, 0),
        msa_tensor_make(s->bounds, MSA_DTYPE_F32, 2, s->n_pages, 3, 0, 0)};
}

/* The copy of all full pages: as if the last query's sequence were new. */
static msa_status quantize(const scan *s)
{
    const int32_t n_tokens = (int32_t)s->n_tokens, cu_seqlens[2] = {0, n_tokens};
    msa_index_quantize_args args;
    msa_index_quantize_args_init(&args);
    args.kv = view_of(s, s->k, MSA_DTYPE_F32);
    args.kv.kv_lens = &n_tokens;
    args.kv.n_seqs = 1;
    args.cu_seqlens_q = cu_seqlens;
    args.n_tokens = n_tokens;
    args.block_size = s->config->block_size;
    args.index8 = copy_of(s);
    return msa_index_quantize(s->ctx, &args);
}

static msa_status choose(const scan *s, const void *k, msa_dtype dtype, int32_t *blocks)
{
    const msa__config *c = s->config;
    msa_select_args args;
    msa_plan plan;
    msa_select_args_init(&args);
    msa_plan_init(&plan);
    args.q_index =
        msa_tensor_make(s->q, MSA_DTYPE_F32, 3, s->n_queries, c->n_kv_heads, c->index_dim, 0);
    args.kv = view_of(s, k, dtype);
    args.cu_seqlens_q = s->cu_seqlens;
    args.block_size = c->block_size;
    args.topk = c->topk_blocks;
    args.n_init = c->n_init_blocks;
    args.n_local = c->n_local_blocks;
    args.blocks =
        msa_tensor_make(blocks, MSA_DTYPE_I32, 3, s->n_queries, c->n_kv_heads, c->topk_blocks, 0);
    if (dtype == MSA_DTYPE_F32) {
        args.index8 = copy_of(s);
        args.n_rescored =
            msa_tensor_make(s->n_rescored, MSA_DTYPE_I32, 2, s->n_queries, c->n_kv_heads, 0, 0);
    }
    MSA_TRY(msa_select_plan(s->ctx, &args, &plan));
    return msa_select(s->ctx, &plan, &args, NULL, plan.workspace_bytes);
}

/* Share of the blocks of one row that are in the other. */
static double overlap(const int32_t *row, const int32_t *other, int32_t n)
{
    int32_t common = 0, n_ids = 0;
    for (; n_ids < n && row[n_ids] >= 0; n_ids++) {
        for (int32_t i = 0; i < n && other[i] >= 0; i++) common += other[i] == row[n_ids];
    }
    return (double)common / n_ids;
}

/* Blocks that are not forced, of a row's visible ones. */
static double candidates(const scan *s, int64_t query)
{
    const msa__config *c = s->config;
    int64_t n_visible = (s->kv_lens[query] - 1) / c->block_size + 1;
    return (double)(n_visible - c->n_init_blocks - c->n_local_blocks);
}

static double rescored(const scan *s, int64_t row)
{
    return s->n_rescored[row] / candidates(s, row / s->config->n_kv_heads);
}

static msa_status scan_keys(const scan *s)
{
    int64_t n = s->n_pages * s->config->block_size * s->config->index_dim;
    for (int64_t i = 0; i < n; i++) s->k_fp8[i] = f32_to_fp8(s->k[i]);
    MSA_TRY(quantize(s));
    return choose(s, s->k, MSA_DTYPE_F32, s->exact);
}

/* ---- a model's, then Gaussian ones -------------------------------------------------------- */

/* Queries from the first with a choice to the last; their lengths, their rows, and the keys. */
static void take(const scan *s, msa_dtype dtype, const void *q_index, const void *k_index)
{
    const msa__config *c = s->config;
    int64_t first = (int64_t)c->topk_blocks * c->block_size, left = s->n_tokens - 1 - first;
    int64_t width = (int64_t)c->n_kv_heads * c->index_dim, n_keys = s->n_tokens * c->index_dim;
    for (int64_t j = 0; j < s->n_queries; j++) {
        int64_t token = first + (s->n_queries > 1 ? j * left / (s->n_queries - 1) : left);
        s->kv_lens[j] = (int32_t)token + 1;
        s->cu_seqlens[j + 1] = (int32_t)j + 1;
        for (int64_t i = 0; i < s->n_pages; i++) {
            s->page_table[j * s->n_pages + i] = (int32_t)i;
        }
        for (int64_t i = 0; i < width; i++) {
            s->q[j * width + i] = load_f32(q_index, dtype, token * width + i);
        }
    }
    for (int64_t i = 0; i < n_keys; i++) s->k[i] = load_f32(k_index, dtype, i);
}

static void fill_gaussian(float *x, int64_t n, uint64_t key)
{
    for (int64_t i = 0; i < n; i++) {
        uint32_t words[4];
        msa__philox(key, (uint64_t)i, 0, words);
        double radius = sqrt(-2 * log(1 - (double)msa__uniform(words[0])));
        x[i] = (float)(radius * cos(6.283185307179586 * (double)msa__uniform(words[1])));
    }
}

static msa_status measure(const scan *s, msa_recall *sums)
{
    const msa__config *c = s->config;
    int64_t n_rows = s->n_queries * c->n_kv_heads, topk = c->topk_blocks;
    MSA_TRY(scan_keys(s));
    MSA_TRY(choose(s, s->k_fp8, MSA_DTYPE_F8_E4M3, s->fp8));
    for (int64_t row = 0; row < n_rows; row++) {
        double share = rescored(s, row);
        sums->n_scanned++;
        sums->rescored += share;
        sums->rescored_blocks += s->n_rescored[row];
        if (share > sums->rescored_max) sums->rescored_max = share;
        sums->fp8_recall += overlap(s->exact + row * topk, s->fp8 + row * topk, (int32_t)topk);
    }
    fill_gaussian(s->q, n_rows * c->index_dim, 1);
    fill_gaussian(s->k, s->n_tokens * c->index_dim, 2);
    MSA_TRY(scan_keys(s));
    for (int64_t row = 0; row < n_rows; row++) sums->rescored_random += rescored(s, row);
    return MSA_OK;
}

msa_status msa__scan8_measure(const msa__config *config, msa_dtype dtype, const void *q_index,
                              const void *k_index, int64_t n_tokens, msa_recall *sums)
{
    int64_t n_choosing = n_tokens - (int64_t)config->topk_blocks * config->block_size;
    if (n_choosing < 1 || config->n_local_blocks < 1) return MSA_OK; /* the copy has full pages */
    scan s = {.config = config,
              .n_tokens = n_tokens,
              .n_pages = msa__ceil_div(n_tokens, config->block_size),
              .n_queries = n_choosing < MSA__SCAN8_QUERIES ? n_choosing : MSA__SCAN8_QUERIES};
    msa_context_args args;
    msa_context_args_init(&args);
    args.backend = "ref";
    MSA_TRY(msa_context_create(&s.ctx, &args));
    msa__arena arena = {NULL, 0, 0};
    lay_out(&s, &arena);
    void *memory = arena.overflow ? NULL : aligned_alloc(64, arena.used);
    msa_status status = MSA_FAIL(MSA_ENOMEM, "recall: no memory for the eight-bit scan");
    if (memory) {
        memset(memory, 0, arena.used);
        arena = (msa__arena){memory, 0, 0};
        lay_out(&s, &arena);
        take(&s, dtype, q_index, k_index);
        status = measure(&s, sums);
    }
    free(memory);
    msa_context_destroy(s.ctx);
    return status;
}
