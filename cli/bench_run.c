/* See bench_run.h.
 *
 * A cache is one layer's K, V and index K in pages of random order. Decode reads several such
 * layers in turn, so that none is in a processor cache when its turn comes; dense attention and MSA
 * take turns on different layers, so that both see the machine in the same state.
 */
#include "bench_run.h"

#include "bench_check.h"
#include "bench_data.h"
#include "progress.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define MIN_REPS   3
#define MAX_LAYERS 1024
#define COLD_BYTES 2e9 /* of layers that take turns: more than any processor cache */

const char *const bench_op_names[BENCH_N_OPS] = {"dense", "select", "attend", "msa"};

/* Everything a case allocates. */
typedef struct {
    const bench_case *c;
    msa_context *ctx;
    bench_pool cache_pool, query_pool;
    int64_t n_tokens, n_pages, max_pages;
    int32_t n_layers;
    size_t layer_bytes, index_offset, value_offset;
    unsigned char *layers[MAX_LAYERS]; /* K, V, index K */
    size_t query_bytes, index_query_bytes;
    unsigned char *q, *q_index, *out_dense, *out_sparse;
    float *lse;
    int32_t *blocks, *table, *cu_seqlens_q;
    unsigned char *workspace;
    size_t workspace_bytes;
    msa_plan plans[3]; /* dense, select, attend */
} fixture;

double bench_quantile(const bench_times *times, int32_t op, double fraction)
{
    double at = fraction * (times->reps - 1);
    int32_t low = (int32_t)at, high = low + 1 < times->reps ? low + 1 : low;
    const double *s = times->seconds[op];
    return s[low] + (at - low) * (s[high] - s[low]);
}

static msa_kv_view view_of(const fixture *f, int32_t layer)
{
    const bench_case *c = f->c;
    unsigned char *base = f->layers[layer];
    msa_kv_view kv;
    memset(&kv, 0, sizeof(kv));
    kv.k =
        msa_tensor_make(base, c->dtype, 4, f->n_pages, c->n_kv_heads, c->block_size, c->head_dim);
    kv.v = msa_tensor_make(base + f->value_offset, c->dtype, 4, f->n_pages, c->n_kv_heads,
                           c->block_size, c->head_dim);
    kv.k_index = msa_tensor_make(base + f->index_offset, c->dtype, 3, f->n_pages, c->block_size,
                                 c->index_dim, 1);
    kv.page_table = f->table;
    kv.page_table_stride = f->max_pages;
    kv.kv_lens = c->kv_lens;
    kv.n_seqs = c->n_seqs;
    return kv;
}

static msa_dtype query_dtype(const bench_case *c)
{
    return c->dtype == MSA_DTYPE_F8_E4M3 ? MSA_DTYPE_BF16 : c->dtype;
}

static msa_tensor query_tensor(const fixture *f, const void *data)
{
    return msa_tensor_make(data, query_dtype(f->c), 3, f->n_tokens, f->c->n_q_heads, f->c->head_dim,
                           1);
}

static msa_tensor blocks_tensor(const fixture *f)
{
    return msa_tensor_make(f->blocks, MSA_DTYPE_I32, 3, f->n_tokens, f->c->n_kv_heads, f->c->topk,
                           1);
}

static msa_dense_attend_args dense_args(const fixture *f, int32_t layer)
{
    msa_dense_attend_args a;
    msa_dense_attend_args_init(&a);
    a.q = query_tensor(f, f->q);
    a.kv = view_of(f, layer);
    a.cu_seqlens_q = f->cu_seqlens_q;
    a.block_size = f->c->block_size;
    a.out = query_tensor(f, f->out_dense);
    return a;
}

static msa_select_args select_args(const fixture *f, int32_t layer)
{
    msa_select_args a;
    msa_select_args_init(&a);
    a.q_index = msa_tensor_make(f->q_index, query_dtype(f->c), 3, f->n_tokens, f->c->n_kv_heads,
                                f->c->index_dim, 1);
    a.kv = view_of(f, layer);
    a.cu_seqlens_q = f->cu_seqlens_q;
    a.block_size = f->c->block_size;
    a.topk = f->c->topk;
    a.blocks = blocks_tensor(f);
    return a;
}

static msa_attend_args attend_args(const fixture *f, int32_t layer)
{
    msa_attend_args a;
    msa_attend_args_init(&a);
    a.q = query_tensor(f, f->q);
    a.kv = view_of(f, layer);
    a.cu_seqlens_q = f->cu_seqlens_q;
    a.blocks = blocks_tensor(f);
    a.block_size = f->c->block_size;
    a.out = query_tensor(f, f->out_sparse);
    a.lse = msa_tensor_make(f->lse, MSA_DTYPE_F32, 2, f->n_tokens, f->c->n_q_heads, 1, 1);
    return a;
}

static msa_status plan_all(fixture *f)
{
    msa_dense_attend_args dense = dense_args(f, 0);
    msa_select_args select = select_args(f, 0);
    msa_attend_args attend = attend_args(f, 0);
    for (int i = 0; i < 3; i++) msa_plan_init(&f->plans[i]);
    msa_status status = msa_dense_attend_plan(f->ctx, &dense, &f->plans[BENCH_DENSE]);
    if (status == MSA_OK) status = msa_select_plan(f->ctx, &select, &f->plans[BENCH_SELECT]);
    if (status == MSA_OK) status = msa_attend_plan(f->ctx, &attend, &f->plans[BENCH_ATTEND]);
    for (int i = 0; i < 3; i++) {
        if (f->plans[i].workspace_bytes > f->workspace_bytes) {
            f->workspace_bytes = f->plans[i].workspace_bytes;
        }
    }
    return status;
}

/* Sizes and offsets of one layer; how many layers take turns. */
static void size_layers(fixture *f, double memory_bytes)
{
    const bench_case *c = f->c;
    for (int32_t s = 0; s < c->n_seqs; s++) {
        int64_t pages = ((int64_t)c->kv_lens[s] + c->block_size - 1) / c->block_size;
        f->n_pages += pages;
        if (pages > f->max_pages) f->max_pages = pages;
    }
    size_t element = msa_dtype_bytes(c->dtype);
    size_t page_tokens = (size_t)(f->n_pages * c->block_size);
    f->value_offset = page_tokens * (size_t)(c->n_kv_heads * c->head_dim) * element;
    f->index_offset = 2 * f->value_offset;
    f->layer_bytes = f->index_offset + page_tokens * (size_t)c->index_dim * element;
    double wanted = c->is_prefill ? 1 : ceil(COLD_BYTES / (double)f->layer_bytes) + 1;
    double room = floor(memory_bytes / (double)f->layer_bytes);
    if (wanted > room) wanted = room;
    f->n_layers = wanted < MAX_LAYERS ? (int32_t)wanted : MAX_LAYERS;
}

/* Page ids in random order. */
static void shuffle_pages(fixture *f)
{
    int32_t page = 0;
    uint64_t *state = &f->cache_pool.state;
    for (int32_t s = 0; s < f->c->n_seqs; s++) {
        int64_t n = (f->c->kv_lens[s] + f->c->block_size - 1) / f->c->block_size;
        int32_t *row = f->table + s * f->max_pages;
        for (int64_t i = 0; i < n; i++) {
            int64_t j = bench_random(state, i + 1);
            row[i] = row[j];
            row[j] = page++;
        }
    }
}

static const char *make_fixture(fixture *f, double memory_bytes, uint64_t seed)
{
    const bench_case *c = f->c;
    size_t element = msa_dtype_bytes(query_dtype(c));
    f->n_tokens = bench_case_tokens(c);
    size_layers(f, memory_bytes);
    if (f->n_layers < 1) return "the cache does not fit into memory";
    f->query_bytes = (size_t)(f->n_tokens * c->n_q_heads * c->head_dim) * element;
    f->index_query_bytes = (size_t)(f->n_tokens * c->n_kv_heads * c->index_dim) * element;
    f->table = calloc((size_t)(c->n_seqs * f->max_pages), sizeof(*f->table));
    f->cu_seqlens_q = calloc((size_t)c->n_seqs + 1, sizeof(*f->cu_seqlens_q));
    f->blocks = malloc((size_t)(f->n_tokens * c->n_kv_heads * c->topk) * sizeof(*f->blocks));
    f->lse = malloc((size_t)(f->n_tokens * c->n_q_heads) * sizeof(*f->lse));
    f->q = bench_alloc(f->query_bytes);
    f->q_index = bench_alloc(f->index_query_bytes);
    f->out_dense = bench_alloc(f->query_bytes);
    f->out_sparse = bench_alloc(f->query_bytes);
    if (!f->table || !f->cu_seqlens_q || !f->blocks || !f->lse || !f->q || !f->q_index ||
        !f->out_dense || !f->out_sparse || !bench_pool_create(&f->cache_pool, c->dtype, seed) ||
        !bench_pool_create(&f->query_pool, query_dtype(c), seed + 1)) {
        return "out of memory";
    }
    for (int32_t i = 0; i < f->n_layers; i++) {
        f->layers[i] = bench_alloc(f->layer_bytes);
        if (!f->layers[i]) return "out of memory";
        bench_pool_fill(&f->cache_pool, f->layers[i],
                        (int64_t)(f->layer_bytes / msa_dtype_bytes(c->dtype)));
    }
    for (int32_t s = 0; s < c->n_seqs; s++) {
        f->cu_seqlens_q[s + 1] = f->cu_seqlens_q[s] + c->q_lens[s];
    }
    shuffle_pages(f);
    if (plan_all(f) != MSA_OK) return msa_last_error();
    f->workspace = bench_alloc(f->workspace_bytes + 64);
    return f->workspace ? NULL : "out of memory";
}

static void free_fixture(fixture *f)
{
    for (int32_t i = 0; i < f->n_layers; i++) bench_free(f->layers[i], f->layer_bytes);
    bench_free(f->workspace, f->workspace_bytes + 64);
    bench_free(f->q, f->query_bytes);
    bench_free(f->q_index, f->index_query_bytes);
    bench_free(f->out_dense, f->query_bytes);
    bench_free(f->out_sparse, f->query_bytes);
    if (f->cache_pool.bytes) bench_pool_destroy(&f->cache_pool);
    if (f->query_pool.bytes) bench_pool_destroy(&f->query_pool);
    free(f->table);
    free(f->cu_seqlens_q);
    free(f->blocks);
    free(f->lse);
}

static void draw_queries(fixture *f)
{
    const bench_case *c = f->c;
    bench_pool_fill(&f->query_pool, f->q, f->n_tokens * c->n_q_heads * c->head_dim);
    bench_pool_fill(&f->query_pool, f->q_index, f->n_tokens * c->n_kv_heads * c->index_dim);
}

static msa_status run_dense(fixture *f, int32_t layer)
{
    msa_dense_attend_args args = dense_args(f, layer);
    return msa_dense_attend(f->ctx, &f->plans[BENCH_DENSE], &args, f->workspace,
                            f->workspace_bytes);
}

static msa_status run_select(fixture *f, int32_t layer)
{
    msa_select_args args = select_args(f, layer);
    return msa_select(f->ctx, &f->plans[BENCH_SELECT], &args, f->workspace, f->workspace_bytes);
}

static msa_status run_attend(fixture *f, int32_t layer)
{
    msa_attend_args args = attend_args(f, layer);
    return msa_attend(f->ctx, &f->plans[BENCH_ATTEND], &args, f->workspace, f->workspace_bytes);
}

static msa_status run_once(fixture *f, int32_t dense_layer, int32_t msa_layer, double *seconds)
{
    double t0 = cli_seconds();
    msa_status status = run_dense(f, dense_layer);
    double t1 = cli_seconds();
    if (status == MSA_OK) status = run_select(f, msa_layer);
    double t2 = cli_seconds();
    if (status == MSA_OK) status = run_attend(f, msa_layer);
    double t3 = cli_seconds();
    seconds[BENCH_DENSE] = t1 - t0;
    seconds[BENCH_SELECT] = t2 - t1;
    seconds[BENCH_ATTEND] = t3 - t2;
    seconds[BENCH_MSA] = t3 - t1;
    return status;
}

static const char *check_operators(fixture *f)
{
    double seconds[BENCH_N_OPS];
    if (run_once(f, 0, 0, seconds) != MSA_OK) return msa_last_error();
    msa_dense_attend_args dense = dense_args(f, 0);
    msa_select_args select = select_args(f, 0);
    msa_attend_args attend = attend_args(f, 0);
    return bench_check(&dense, &select, &attend, &f->cache_pool.state);
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static const char *time_operators(fixture *f, double budget_seconds, bench_times *times)
{
    double ratios[BENCH_MAX_REPS], seconds[BENCH_N_OPS];
    double begin = cli_seconds();
    int32_t rep = 0;
    for (; rep < BENCH_MAX_REPS; rep++) {
        if (rep >= MIN_REPS && cli_seconds() - begin > budget_seconds) break;
        draw_queries(f);
        int32_t dense_layer = rep % f->n_layers;
        int32_t msa_layer = (dense_layer + f->n_layers / 2) % f->n_layers;
        if (run_once(f, dense_layer, msa_layer, seconds) != MSA_OK) return msa_last_error();
        for (int32_t op = 0; op < BENCH_N_OPS; op++) times->seconds[op][rep] = seconds[op];
        ratios[rep] = seconds[BENCH_DENSE] / seconds[BENCH_MSA];
    }
    times->reps = rep;
    for (int32_t op = 0; op < BENCH_N_OPS; op++) {
        qsort(times->seconds[op], (size_t)rep, sizeof(double), ascending);
    }
    qsort(ratios, (size_t)rep, sizeof(double), ascending);
    times->dense_to_msa = rep % 2 ? ratios[rep / 2] : (ratios[rep / 2] + ratios[rep / 2 - 1]) / 2;
    return NULL;
}

/* (M21)-(M24) for these lengths; attention over the selection in hand. */
static void count_work(const fixture *f, bench_times *times)
{
    const bench_case *c = f->c;
    double element = (double)msa_dtype_bytes(c->dtype), keys = (double)bench_case_keys(c);
    double pairs = bench_case_pairs(c), chosen = 0;
    for (int32_t s = 0, t = 0; s < c->n_seqs; s++) {
        for (int32_t i = 0; i < c->q_lens[s]; i++, t++) {
            int64_t position = (int64_t)c->kv_lens[s] - c->q_lens[s] + i;
            int64_t visible = position / c->block_size + 1;
            int64_t n = visible < c->topk ? visible : c->topk;
            chosen += (double)((n - 1) * c->block_size + position % c->block_size + 1);
        }
    }
    double group_keys = chosen < keys ? chosen : keys; /* read at most once each */
    times->flops[BENCH_DENSE] = 4.0 * c->n_q_heads * c->head_dim * pairs;
    times->flops[BENCH_SELECT] = 2.0 * c->n_kv_heads * c->index_dim * pairs;
    times->flops[BENCH_ATTEND] = 4.0 * c->n_q_heads * c->head_dim * chosen;
    times->bytes[BENCH_DENSE] = 2.0 * c->n_kv_heads * c->head_dim * element * keys;
    times->bytes[BENCH_SELECT] = c->index_dim * element * keys;
    times->bytes[BENCH_ATTEND] = 2.0 * c->n_kv_heads * c->head_dim * element * group_keys;
    times->flops[BENCH_MSA] = times->flops[BENCH_SELECT] + times->flops[BENCH_ATTEND];
    times->bytes[BENCH_MSA] = times->bytes[BENCH_SELECT] + times->bytes[BENCH_ATTEND];
    times->workspace_bytes = (double)f->workspace_bytes;
}

const char *bench_run(msa_context *ctx, const bench_case *c, double budget_seconds,
                      double memory_bytes, uint64_t seed, bench_times *times)
{
    fixture f;
    memset(&f, 0, sizeof(f));
    memset(times, 0, sizeof(*times));
    f.c = c;
    f.ctx = ctx;
    const char *problem = make_fixture(&f, memory_bytes, seed);
    if (!problem) draw_queries(&f);
    if (!problem) problem = check_operators(&f);
    if (!problem) problem = time_operators(&f, budget_seconds, times);
    if (!problem) count_work(&f, times);
    free_fixture(&f);
    return problem;
}
