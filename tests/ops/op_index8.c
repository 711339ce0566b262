/* The eight-bit copy of the index keys: its bounds hold, it follows the cache through truncations
 * and forks, and a select that scans it keeps exactly the blocks of the select that does not. */
#include "harness/cmocka_all.h"
#include "harness/reduced.h"

#include "base/numeric.h"
#include "base/rng.h"
#include "msa/cache.h"
#include "ops/calls.h"
#include "ops/cases.h"
#include "ops/kv_tile.h"
#include "ops/layer_fixture.h"
#include "ops/oracle.h"

#include <math.h>
#include <stdlib.h>

/* ---- helpers --------------------------------------------------------------------------------- */

/* A copy for the pages of a view, between poison; free with free_index8. */
static msa_index8 new_index8(const msa_kv_view *kv, int64_t pad)
{
    const msa_tensor *k = &kv->k_index;
    msa_index8 index8;
    index8.keys = poisoned_tensor(MSA_DTYPE_I8, 3, k->shape[0], k->shape[1], k->shape[2], 1, pad);
    index8.bounds = poisoned_tensor(MSA_DTYPE_F32, 2, k->shape[0], 3, 1, 1, pad);
    return index8;
}

static void free_index8(msa_index8 *index8)
{
    free(index8->keys.data);
    free(index8->bounds.data);
}

/* As if every token of the batch were new. */
static void quantize_all(msa_context *ctx, const msa_kv_view *kv, int32_t block_size,
                         const msa_index8 *index8)
{
    msa_index_quantize_args args;
    msa_index_quantize_args_init(&args);
    int32_t *cu = calloc((size_t)kv->n_seqs + 1, sizeof(*cu));
    assert_non_null(cu);
    for (int32_t s = 0; s < kv->n_seqs; s++) cu[s + 1] = cu[s] + kv->kv_lens[s];
    args.kv = *kv;
    args.cu_seqlens_q = cu;
    args.n_tokens = cu[kv->n_seqs];
    args.block_size = block_size;
    args.index8 = *index8;
    EXPECT_OK(call_index_quantize(ctx, &args));
    free(cu);
}

/* (Q1), (Q2) for one page by brute force; returns how many of its numbers break a rule. */
static int64_t count_wrong(const msa_kv_view *kv, const msa_index8 *index8, int32_t seq,
                           int64_t block, int32_t block_size)
{
    const msa_tensor *lane = &kv->k_index;
    msa__kv_tile tile = msa__kv_block(kv, lane, seq, block, 0, block_size);
    int64_t page = kv->page_table[seq * kv->page_table_stride + block], dim = lane->shape[2];
    const float *bounds = (const float *)index8->bounds.data + page * index8->bounds.stride[0];
    double scale = (double)bounds[0], n_wrong = 0;
    int finite = 1;
    for (int64_t j = 0; j < block_size; j++) {
        const int8_t *row = (const int8_t *)index8->keys.data + page * index8->keys.stride[0] +
                            j * index8->keys.stride[1];
        double error = 0, norm = 0;
        for (int64_t d = 0; d < dim; d++) {
            double x = (double)load_f32(tile.data, lane->dtype, j * tile.row_stride + d);
            x *= (double)kv->k_index_scale;
            finite &= isfinite(x) != 0;
            error += (x - scale * row[d]) * (x - scale * row[d]);
            norm += scale * row[d] * scale * row[d];
        }
        if (!finite) continue;
        n_wrong += !(sqrt(error) <= (double)bounds[1]) + !(sqrt(norm) <= (double)bounds[2]);
        /* and the error is that of rounding to the nearest */
        if (isfinite(bounds[1]))
            n_wrong += sqrt(error) > 0.5001 * scale * sqrt((double)dim) + 0x1p-49;
    }
    n_wrong += !isfinite(bounds[0]) + (!finite && isfinite(bounds[1]));
    return (int64_t)n_wrong;
}

static void expect_quantized(const char *label, const msa_kv_view *kv, const msa_index8 *index8,
                             int32_t block_size)
{
    for (int32_t s = 0; s < kv->n_seqs; s++) {
        for (int64_t b = 0; b < kv->kv_lens[s] / block_size; b++) {
            if (count_wrong(kv, index8, s, b, block_size) == 0) continue;
            fail_msg("%s: sequence %d, block %lld", label, s, (long long)b);
        }
    }
}

/* Rows, index LSE and (with index8) counts of a select. */
static void select_rows(msa_context *ctx, const problem *p, const msa_index8 *index8, int32_t *rows,
                        float *lse, int32_t *n_rescored)
{
    msa_select_args args = select_args(p);
    int64_t T = p->n_tokens, n_heads = p->spec.n_kv_heads;
    args.blocks = msa_tensor_make(rows, MSA_DTYPE_I32, 3, T, n_heads, p->spec.topk, 1);
    args.index_lse = msa_tensor_make(lse, MSA_DTYPE_F32, 2, T, n_heads, 1, 1);
    if (index8) {
        args.index8 = *index8;
        args.settled = 1; /* which changes nothing */
        args.n_rescored = msa_tensor_make(n_rescored, MSA_DTYPE_I32, 2, T, n_heads, 1, 1);
    }
    msa_plan plan;
    msa_plan_init(&plan);
    EXPECT_OK(msa_select_plan(ctx, &args, &plan));
    void *workspace = fixture_workspace(plan.workspace_bytes);
    EXPECT_OK(call_select(ctx, &plan, &args, workspace, plan.workspace_bytes));
}

/* The two selects agree bit by bit; returns the number of blocks scored again over the batch. */
static int64_t expect_same_selection(msa_context *ctx, const problem *p, const msa_index8 *index8)
{
    int64_t n_rows = p->n_tokens * p->spec.n_kv_heads, n_ids = n_rows * p->spec.topk, n_again = 0;
    int32_t *rows = malloc((size_t)(2 * n_ids + n_rows + 1) * sizeof(int32_t));
    float *lse = malloc((size_t)(2 * n_rows + 1) * sizeof(float));
    int32_t *counts = rows + 2 * n_ids;
    select_rows(ctx, p, NULL, rows, lse, NULL);
    select_rows(ctx, p, index8, rows + n_ids, lse + n_rows, counts);
    expect_same_ids(p->spec.name, rows, rows + n_ids, n_ids);
    expect_same_floats(p->spec.name, lse, lse + n_rows, n_rows);
    for (int64_t i = 0; i < n_rows; i++) {
        int32_t n_forced = p->spec.n_init + p->spec.n_local;
        int32_t n_slots = p->spec.topk - n_forced;
        int32_t local = p->position[i / p->spec.n_kv_heads] / p->spec.block_size;
        int32_t n_others = local + 1 > n_forced ? local + 1 - n_forced : 0;
        if (n_slots == 0) n_others = 0;
        assert_in_range(counts[i], n_others < n_slots ? n_others : n_slots, n_others);
        n_again += counts[i];
    }
    free(rows);
    free(lse);
    return n_again;
}

/* The same pages in a table with room for 2,048 blocks more: a device decides by capacity which
 * kernels a batch of few tokens takes. */
static void expect_same_with_room(msa_context *ctx, const problem *p, const msa_index8 *index8)
{
    int64_t n_seqs = p->kv.n_seqs, stride = p->kv.page_table_stride + 2048;
    int32_t *table = malloc((size_t)(n_seqs * stride) * sizeof(int32_t));
    assert_non_null(table);
    for (int64_t i = 0; i < n_seqs * stride; i++) {
        int64_t seq = i / stride, block = i % stride;
        table[i] = block < p->kv.page_table_stride
                       ? p->page_table[seq * p->kv.page_table_stride + block]
                       : INT32_MIN;
    }
    problem roomy = *p;
    roomy.kv.page_table = table;
    roomy.kv.page_table_stride = (int32_t)stride;
    expect_same_selection(ctx, &roomy, index8);
    free(table);
}

static void check_problem(const problem *p)
{
    msa_context *ctx;
    for (int32_t c = 0; (ctx = attention_context(c)) != NULL; c++) {
        msa_index8 index8 = new_index8(&p->kv, p->spec.oversized ? 5 : 0);
        quantize_all(ctx, &p->kv, p->spec.block_size, &index8);
        expect_quantized(p->spec.name, &p->kv, &index8, p->spec.block_size);
        expect_same_selection(ctx, p, &index8);
        if (test_backend() && p->n_tokens <= 16 * p->kv.n_seqs)
            expect_same_with_room(ctx, p, &index8);
        free_index8(&index8);
    }
}

/* ---- tests ----------------------------------------------------------------------------------- */

static void check_case(const problem_spec *spec, void *arg)
{
    (void)arg;
    if (!spec->paged || spec->n_local < 0) return; /* the copy has no local block */
    problem *p = problem_create(spec, 5);
    check_problem(p);
    problem_free(p);
}

static void test_every_case(void **state)
{
    (void)state;
    for_each_case(check_case, NULL);
}

/* Keys and queries that break careless bounds: one kind per block and per query. */
static double special(uint32_t kind, double x, int64_t d)
{
    switch (kind) {
    case 0:
        return 0;
    case 1:
        return d == 3 ? (double)NAN : x;
    case 2:
        return d == 5 ? HUGE_VAL : x;
    case 3:
        return x * 1e36; /* finite, products overflow */
    case 4:
        return x * 1e-38; /* products vanish */
    case 5:
        return d == 7 ? 60 * x : x; /* an outlier channel */
    case 6:
        return d == 0 ? 1 : 0;
    default:
        return x;
    }
}

static void test_special_numbers(void **state)
{
    (void)state;
    for (msa_dtype cache_dtype = 0; cache_dtype < 2; cache_dtype++) {
        problem_spec spec = case_named("forced");
        spec.q_dtype = spec.cache_dtype = cache_dtype;
        problem *p = problem_create(&spec, 6);
        for (int64_t j = 0; j < p->n_keys * spec.index_dim; j++) {
            uint32_t words[4];
            msa__philox(8, (uint64_t)(j / spec.index_dim / spec.block_size), 0, words);
            p->k_index[j] = special(words[0] % 12, p->k_index[j], j % spec.index_dim);
        }
        for (int64_t i = 0; i < p->n_tokens * spec.n_kv_heads * spec.index_dim; i++) {
            p->q_index[i] =
                special((uint32_t)(i / spec.index_dim % 9), p->q_index[i], i % spec.index_dim);
        }
        problem_store(p);
        check_problem(p);
        problem_free(p);
    }
}

/* The point of it all: few blocks are scored again when scores are not ties. */
static void test_few_blocks_stay_open(void **state)
{
    (void)state;
    problem_spec spec = {.name = "long",
                         .n_seqs = 1,
                         .n_lens = 1,
                         .q_lens = {2},
                         .kv_lens = {40000},
                         .n_q_heads = 2,
                         .n_kv_heads = 2,
                         .head_dim = 16,
                         .index_dim = 128,
                         .block_size = 128,
                         .topk = 16,
                         .n_local = 1,
                         .q_dtype = MSA_DTYPE_BF16,
                         .cache_dtype = MSA_DTYPE_BF16,
                         .paged = 1};
    if (test_backend()) spec.kv_lens[0] = 270000; /* where the device's decode kernel begins */
    problem *p = problem_create(&spec, 7);
    msa_context *ctx = attention_context(0); /* ref, or the test backend */
    msa_index8 index8 = new_index8(&p->kv, 0);
    quantize_all(ctx, &p->kv, spec.block_size, &index8);
    int64_t n_again = expect_same_selection(ctx, p, &index8), n_rows = 4;
    print_message("%.1f of %d blocks scored again\n", (double)n_again / (double)n_rows,
                  (int)spec.kv_lens[0] / 128 - 1);
    assert_in_range(n_again, 15 * n_rows, 150 * n_rows);
    free_index8(&index8);
    problem_free(p);
}

/* Few tokens a sequence, as decode has them, over every kind of block. */
static void test_special_numbers_in_decode(void **state)
{
    (void)state;
    if (!test_backend()) skip(); /* the same kernels as above */
    problem_spec spec = {.name = "special decode",
                         .n_seqs = 3,
                         .n_lens = 3,
                         .q_lens = {1, 16, 3},
                         .kv_lens = {20001, 3000, 5200},
                         .n_q_heads = 4,
                         .n_kv_heads = 4,
                         .head_dim = 16,
                         .index_dim = 128,
                         .block_size = 128,
                         .topk = 16,
                         .n_init = 1,
                         .n_local = 2,
                         .q_dtype = MSA_DTYPE_BF16,
                         .cache_dtype = MSA_DTYPE_BF16,
                         .paged = 1};
    problem *p = problem_create(&spec, 12);
    for (int64_t j = 0; j < p->n_keys * spec.index_dim; j++) {
        int64_t block = j / spec.index_dim / spec.block_size;
        p->k_index[j] = special((uint32_t)(block % 12), p->k_index[j], j % spec.index_dim);
    }
    for (int64_t i = 0; i < p->n_tokens * spec.n_kv_heads * spec.index_dim; i++) {
        p->q_index[i] =
            special((uint32_t)(i / spec.index_dim % 9), p->q_index[i], i % spec.index_dim);
    }
    problem_store(p);
    check_problem(p);
    problem_free(p);
}

/* Chunks long enough for the device's eight-bit kernels: many tokens, more than 1,024 blocks. */
static void test_long_chunks_on_a_device(void **state)
{
    (void)state;
    /* The reference would take minutes, and so would a checking tool. */
    if (!test_backend() || test_is_reduced()) skip();
    problem_spec spec = {.name = "long chunks",
                         .n_seqs = 2,
                         .n_lens = 2,
                         .q_lens = {5900, 777},
                         .kv_lens = {135000, 20000},
                         .n_q_heads = 4,
                         .n_kv_heads = 4,
                         .head_dim = 16,
                         .index_dim = 128,
                         .block_size = 128,
                         .topk = 16,
                         .n_local = 1,
                         .q_dtype = MSA_DTYPE_BF16,
                         .cache_dtype = MSA_DTYPE_BF16,
                         .paged = 1};
    for (int n = 0; n < 2; n++) { /* plain; forced blocks and special pages */
        spec.topk = n == 1 ? 11 : 16;
        spec.n_init = n == 1;
        spec.n_local = 1 + (n == 1);
        problem *p = problem_create(&spec, 11 + (uint64_t)n);
        for (int64_t j = 0; n == 1 && j < p->n_keys * spec.index_dim; j++) {
            int64_t block = j / spec.index_dim / spec.block_size;
            if (block % 97 == 0) {
                p->k_index[j] =
                    special((uint32_t)(block / 97 % 8), p->k_index[j], j % spec.index_dim);
            }
        }
        if (n == 1) problem_store(p);
        check_problem(p);
        problem_free(p);
    }
}

/* Pages that did not become full with the new tokens are left alone. */
static void test_only_filled_pages_are_written(void **state)
{
    (void)state;
    problem_spec spec = case_named("typical"); /* S 100, 77, 40; T 20, 1, 40; pages of 16 */
    problem *p = problem_create(&spec, 9);
    msa_context *ctx;
    for (int32_t c = 0; (ctx = attention_context(c)) != NULL; c++) {
        msa_index8 index8 = new_index8(&p->kv, 0);
        msa_index_quantize_args args;
        msa_index_quantize_args_init(&args);
        args.kv = p->kv;
        args.cu_seqlens_q = p->cu_q;
        args.n_tokens = p->n_tokens;
        args.block_size = spec.block_size;
        args.index8 = index8;
        EXPECT_OK(call_index_quantize(ctx, &args));
        for (int32_t s = 0; s < 3; s++) {
            int32_t length = p->kv_lens[s], n_new = p->cu_q[s + 1] - p->cu_q[s];
            for (int32_t b = 0; b < p->n_blocks; b++) {
                int64_t page = p->page_table[s * p->kv.page_table_stride + b];
                float scale = ((float *)index8.bounds.data)[page * 3];
                int filled = (b + 1) * 16 <= length && (b + 1) * 16 > length - n_new;
                assert_int_equal(!isnan(scale), filled);
                if (filled) assert_int_equal(count_wrong(&p->kv, &index8, s, b, 16), 0);
            }
        }
        free_index8(&index8);
    }
    problem_free(p);
}

/* ---- in the cache ---------------------------------------------------------------------------- */

enum { PAGE = 16, PAGES = 40, DIM = 32, SEQS = 4 };

typedef struct history {
    msa_context *ctx;
    msa_cache *cache;
    uint64_t counter;
} history;

static uint32_t draw(history *h, uint32_t below)
{
    uint32_t words[4];
    msa__philox(17, h->counter++, 0, words);
    return words[0] % below;
}

/* n new tokens of random numbers, of a size that differs from call to call. */
static void append(history *h, int32_t seq, int32_t n)
{
    if (msa_cache_extend(h->cache, seq, n) != MSA_OK) return;
    int32_t table[PAGES], length, cu[2] = {0, n};
    float rows[2 * PAGE * DIM], k[2 * PAGE * 16] = {0};
    float size = (float)(1 + draw(h, 100));
    for (int32_t i = 0; i < n * DIM; i++) rows[i] = size * ((float)draw(h, 2001) / 1000 - 1);
    msa_kv_append_args args;
    msa_kv_append_args_init(&args);
    EXPECT_OK(msa_cache_view(h->cache, 0, &seq, 1, table, PAGES, &length, &args.kv));
    args.k = args.v = msa_tensor_make(k, MSA_DTYPE_F32, 3, n, 1, 16, 1);
    args.k_index = msa_tensor_make(rows, MSA_DTYPE_F32, 2, n, DIM, 1, 1);
    args.cu_seqlens_q = cu;
    args.block_size = PAGE;
    EXPECT_OK(msa_kv_append(h->ctx, &args));
    msa_index_quantize_args quantize;
    msa_index_quantize_args_init(&quantize);
    quantize.kv = args.kv;
    quantize.cu_seqlens_q = cu;
    quantize.n_tokens = n;
    quantize.block_size = PAGE;
    EXPECT_OK(msa_cache_index8(h->cache, 0, &quantize.index8));
    EXPECT_OK(msa_index_quantize(h->ctx, &quantize));
}

static void step(history *h)
{
    int32_t seq = (int32_t)draw(h, SEQS), opened;
    int64_t length = msa_cache_length(h->cache, seq);
    uint32_t choice = draw(h, 10);
    if (length < 0) {
        EXPECT_OK(msa_cache_open(h->cache, &opened));
    } else if (choice < 6) {
        append(h, seq, (int32_t)draw(h, 2 * PAGE + 1));
    } else if (choice < 8) {
        EXPECT_OK(msa_cache_truncate(h->cache, seq, draw(h, (uint32_t)length + 1)));
    } else if (choice < 9) {
        (void)!msa_cache_fork(h->cache, seq, &opened);
    } else {
        EXPECT_OK(msa_cache_close(h->cache, seq));
    }
}

static void test_random_histories_stay_quantized(void **state)
{
    (void)state;
    if (test_backend()) return; /* it looks at the pages */
    history h = {.ctx = attention_context(0)};
    msa_cache_args args;
    msa_cache_args_init(&args);
    args.n_layers = args.n_kv_heads = 1;
    args.head_dim = 16;
    args.index_dim = DIM;
    args.block_size = PAGE;
    args.max_seqs = SEQS;
    args.max_tokens = PAGES * PAGE;
    args.index8 = 1;
    EXPECT_OK(msa_cache_create(&h.cache, h.ctx, &args));
    assert_int_equal(msa_cache_bytes_per_token(h.cache), 4 * (16 + 16 + DIM) + DIM + 1);
    msa_index8 index8;
    EXPECT_OK(msa_cache_index8(h.cache, 0, &index8));
    for (int i = 0; i < 400; i++) {
        step(&h);
        for (int32_t s = 0; s < SEQS; s++) {
            int32_t table[PAGES], length;
            msa_kv_view view;
            if (msa_cache_length(h.cache, s) < 0) continue;
            EXPECT_OK(msa_cache_view(h.cache, 0, &s, 1, table, PAGES, &length, &view));
            expect_quantized("history", &view, &index8, PAGE);
        }
    }
    EXPECT_FAIL(MSA_EINVAL, "cache_index8: layer = 1", msa_cache_index8(h.cache, 1, &index8));
    EXPECT_FAIL(MSA_EINVAL, "cache_index8: cache = NULL", msa_cache_index8(NULL, 0, &index8));
    msa_cache_destroy(h.cache);
    args.index8 = 2;
    EXPECT_FAIL(MSA_EINVAL, "index8 = 2, must be 0..1", msa_cache_create(&h.cache, h.ctx, &args));
    args.index8 = 0;
    EXPECT_OK(msa_cache_create(&h.cache, h.ctx, &args));
    EXPECT_OK(msa_cache_index8(h.cache, 0, &index8));
    assert_null(index8.keys.data);
    assert_null(index8.bounds.data);
    msa_cache_destroy(h.cache);
}

/* ---- arguments ------------------------------------------------------------------------------- */

static void test_wrong_arguments_are_named(void **state)
{
    (void)state;
    problem_spec spec = case_named("typical");
    problem *p = problem_create(&spec, 10);
    msa_context *ctx = attention_context(0);
    msa_index8 index8 = new_index8(&p->kv, 0);
    float scores[61 * 2 * 7];
    int32_t rows[61 * 2 * 4], counts[61 * 2];
    msa_select_args good = select_args(p), a;
    msa_plan plan;
    msa_plan_init(&plan);
    good.blocks = msa_tensor_make(rows, MSA_DTYPE_I32, 3, 61, 2, 4, 1);
    good.n_rescored = msa_tensor_make(counts, MSA_DTYPE_I32, 2, 61, 2, 1, 1);
    good.index8 = index8;
    a = good;
    EXPECT_OK(msa_select_plan(ctx, &a, &plan));
#define REJECTS(change, text)                                                                      \
    do {                                                                                           \
        a = good;                                                                                  \
        change;                                                                                    \
        EXPECT_FAIL(MSA_EINVAL, text, msa_select_plan(ctx, &a, &plan));                            \
    } while (0)
    msa_tensor packed = msa_tensor_make(p->kv.k_index.data, p->kv.k_index.dtype, 2, 217, 32, 1, 1);
    REJECTS((a.kv.page_table = NULL, a.kv.cu_seqlens_k = p->cu_k, a.kv.k_index = packed),
            "select: kv.page_table = NULL, must be set with index8");
    REJECTS(a.index8.keys.dtype = MSA_DTYPE_U8, "index8.keys.dtype = 4 (u8), must be i8");
    REJECTS(a.index8.keys.shape[0]--, "index8.keys.shape[0] = ");
    REJECTS(a.index8.keys.shape[1] = 8, "index8.keys.shape[1] = 8, must equal P = 16");
    REJECTS(a.index8.keys.shape[2] = 16, "index8.keys.shape[2] = 16, must equal Di = 32");
    REJECTS(a.index8.bounds.n_dims = 3, "index8.bounds.n_dims = 3, must be 2");
    REJECTS(a.index8.bounds.shape[0]--, "index8.bounds.shape[0] = ");
    REJECTS(a.index8.bounds.shape[1] = 2, "index8.bounds.shape[1] = 2");
    REJECTS(a.block_scores = msa_tensor_make(scores, MSA_DTYPE_F32, 3, 61, 2, 7, 1),
            "select: block_scores is present, must be absent with index8");
    REJECTS(memset(&a.index8, 0, sizeof(a.index8)),
            "select: n_rescored is present, must be absent without index8");
    REJECTS(a.n_rescored.shape[1] = 1, "n_rescored.shape[1] = 1, must equal q_index's Hkv = 2");
#undef REJECTS
    msa_index_quantize_args q, good_q;
    msa_index_quantize_args_init(&good_q);
    good_q.kv = p->kv;
    good_q.cu_seqlens_q = p->cu_q;
    good_q.n_tokens = p->n_tokens;
    good_q.block_size = spec.block_size;
    good_q.index8 = index8;
#define REJECTS(change, text)                                                                      \
    do {                                                                                           \
        q = good_q;                                                                                \
        change;                                                                                    \
        EXPECT_FAIL(MSA_EINVAL, text, call_index_quantize(ctx, &q));                               \
    } while (0)
    if (!test_backend()) { /* contents of arrays */
        REJECTS(q.n_tokens = 60, "index_quantize: cu_seqlens_q[3] = 61, must be equal to");
    }
    REJECTS(q.n_tokens = -1, "index_quantize: n_tokens = -1");
    REJECTS(q.block_size = 12, "index_quantize: block_size = 12");
    REJECTS(q.index8.keys.data = NULL, "index_quantize: index8.keys = NULL");
    REJECTS(q.index8.bounds.data = NULL, "index_quantize: index8.bounds = NULL");
    REJECTS(q.index8.keys.stride[1] = 1, "must keep elements apart");
    REJECTS(q.kv.page_table = NULL, "kv.page_table and kv.cu_seqlens_k are both NULL");
#undef REJECTS
    free_index8(&index8);
    problem_free(p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_case),
        cmocka_unit_test(test_special_numbers),
        cmocka_unit_test(test_special_numbers_in_decode),
        cmocka_unit_test(test_few_blocks_stay_open),
        cmocka_unit_test(test_long_chunks_on_a_device),
        cmocka_unit_test(test_only_filled_pages_are_written),
        cmocka_unit_test(test_random_histories_stay_quantized),
        cmocka_unit_test(test_wrong_arguments_are_named),
    };
    return cmocka_run_group_tests(tests, NULL, fixture_teardown);
}
