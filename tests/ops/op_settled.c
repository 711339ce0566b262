/* Selects of settled keys in a chain of decode steps, nothing awaited in between: a backend may
 * read old keys while the operator ahead still runs. Every step appends its tokens into slots of
 * poison, selects for them, and once more for the last of each sequence, to which the others are
 * settled by then. Whole numbers, so that the rows are those of ref.
 */
#include "harness/cmocka_all.h"
#include "harness/reduced.h"

#include "base/numeric.h"
#include "base/rng.h"
#include "msa/graph.h"
#include "msa/memory.h"
#include "ops/layer_fixture.h"
#include "ops/oracle.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum {
    SEQS = 3,
    HEADS = 2,
    DIM = 128,
    PAGE = 128,
    TOPK = 16,
    STEPS = 12,
    STRIDE = 704 /* of the page table: where a device's eight-bit kernel begins */
};

/* What a step knows of its batch. Sequences change places from step to step, so that the numbers
 * of the step before fit nowhere. */
enum { STATE_ROWS = 5, STATE_ROW = 512 };
typedef union batch {
    struct {
        int32_t lens[16], pages[SEQS][STRIDE];
    };
    int32_t rows[STATE_ROWS][STATE_ROW];
} batch;

/* Host memory, and where it was put for the operators. */
typedef struct array {
    void *host, *data;
    size_t bytes;
} array;

typedef struct chain {
    int32_t n_pages, n_tokens, n_old; /* in the cache, of a step, before the first one */
    array states, shared, old;        /* of every step; what they share; before the first one */
    array cu, cu_last, cu_old;        /* of all tokens of a step, of the last ones, of the old */
    array keys, values, copy, bounds; /* pages of the cache */
    array new_keys, new_values, q;    /* of all steps */
    array rows, workspace;
    msa_plan plans[2];
} chain;

static void *array_new(array *a, size_t n, size_t element_bytes)
{
    *a = (array){fixture_alloc(n * element_bytes), NULL, n * element_bytes};
    memset(a->host, 0, a->bytes);
    return a->host;
}

static uint16_t whole(uint64_t stream, uint64_t i, int32_t factor)
{
    uint32_t words[4];
    msa__philox(stream, i / 4, 0, words);
    return f32_to_bf16((float)(factor * ((int32_t)(words[i % 4] % 7) - 3)));
}

/* ---- the operators' arguments ---------------------------------------------------------------- */

static msa_kv_view view_of(const chain *c, const batch *at)
{
    msa_kv_view kv = {0};
    kv.k = kv.v = msa_tensor_make(c->values.data, MSA_DTYPE_F32, 4, c->n_pages, 1, PAGE, 16);
    kv.k_index = msa_tensor_make(c->keys.data, MSA_DTYPE_BF16, 3, c->n_pages, PAGE, DIM, 1);
    kv.page_table = at->pages[0];
    kv.page_table_stride = STRIDE;
    kv.kv_lens = at->lens;
    kv.n_seqs = SEQS;
    return kv;
}

static msa_index8 index8_of(const chain *c)
{
    msa_index8 index8 = {msa_tensor_make(c->copy.data, MSA_DTYPE_I8, 3, c->n_pages, PAGE, DIM, 1),
                         msa_tensor_make(c->bounds.data, MSA_DTYPE_F32, 2, c->n_pages, 3, 1, 1)};
    return index8;
}

static void append(msa_context *ctx, const chain *c, const msa_kv_view *kv, int32_t step)
{
    msa_kv_append_args args;
    msa_kv_append_args_init(&args);
    args.k = args.v = msa_tensor_make(c->new_values.data, MSA_DTYPE_F32, 3, c->n_tokens, 1, 16, 1);
    args.k_index = msa_tensor_make((uint16_t *)c->new_keys.data + step * c->n_tokens * DIM,
                                   MSA_DTYPE_BF16, 2, c->n_tokens, DIM, 1, 1);
    args.cu_seqlens_q = c->cu.data;
    args.kv = *kv;
    EXPECT_OK(msa_kv_append(ctx, &args));
}

/* A step's state into the shared one, by an operator: bits of f32 rows of a cache. */
static void share_state(msa_context *ctx, const chain *c, const batch *from)
{
    msa_kv_append_args args;
    msa_kv_append_args_init(&args);
    args.k = args.v =
        msa_tensor_make((void *)(uintptr_t)from, MSA_DTYPE_F32, 3, 1, STATE_ROWS, STATE_ROW, 1);
    args.kv.k = args.kv.v = args.k;
    args.kv.k.data = args.kv.v.data = c->shared.data;
    args.cu_seqlens_q = args.kv.cu_seqlens_k = c->cu_last.data; /* 0, 1 */
    args.kv.n_seqs = 1;
    EXPECT_OK(msa_kv_append(ctx, &args));
}

static void quantize(msa_context *ctx, const chain *c, const msa_kv_view *kv, const array *cu,
                     int64_t n_tokens)
{
    msa_index_quantize_args args;
    msa_index_quantize_args_init(&args);
    args.kv = *kv;
    args.cu_seqlens_q = cu->data;
    args.n_tokens = n_tokens;
    args.index8 = index8_of(c);
    EXPECT_OK(msa_index_quantize(ctx, &args));
}

static int64_t row_ids(const chain *c, int32_t step, int32_t last)
{
    return ((int64_t)step * (c->n_tokens + SEQS) + (last ? c->n_tokens : 0)) * HEADS * TOPK;
}

/* Of all tokens of a step, or of the last one of each sequence. */
static msa_select_args selection(const chain *c, const msa_kv_view *kv, int32_t step, int32_t last)
{
    int64_t n = last ? SEQS : c->n_tokens, at = row_ids(c, step, last);
    msa_select_args args;
    msa_select_args_init(&args);
    args.q_index = msa_tensor_make((uint16_t *)c->q.data + at / TOPK * DIM, MSA_DTYPE_BF16, 3, n,
                                   HEADS, DIM, 1);
    args.kv = *kv;
    args.cu_seqlens_q = last ? c->cu_last.data : c->cu.data;
    args.blocks =
        msa_tensor_make((int32_t *)c->rows.data + at, MSA_DTYPE_I32, 3, n, HEADS, TOPK, 1);
    args.settled = 1;
    return args;
}

/* ---- the chain ------------------------------------------------------------------------------- */

typedef struct variant {
    int32_t index8, shared, recorded; /* shared: lengths and pages come from the operator ahead */
} variant;

static void run_steps(msa_context *ctx, const chain *c, variant v)
{
    for (int32_t step = 0; step < STEPS; step++) {
        const batch *own = (const batch *)c->states.data + step;
        msa_kv_view kv = view_of(c, own);
        append(ctx, c, &kv, step);
        if (v.index8) quantize(ctx, c, &kv, &c->cu, c->n_tokens);
        if (v.shared) share_state(ctx, c, own);
        if (v.shared) kv = view_of(c, c->shared.data);
        for (int32_t last = 0; last < 2; last++) {
            msa_select_args args = selection(c, &kv, step, last);
            if (v.index8) args.index8 = index8_of(c);
            EXPECT_OK(
                msa_select(ctx, &c->plans[last], &args, c->workspace.data, c->workspace.bytes));
        }
    }
}

/* The rows of all selects, from the beginning each time. */
static int32_t *run_chain(msa_context *ctx, chain *c, variant v)
{
    array *arrays[] = {&c->states, &c->shared, &c->old,      &c->cu,        &c->cu_last,
                       &c->cu_old, &c->keys,   &c->values,   &c->copy,      &c->bounds,
                       &c->q,      &c->rows,   &c->new_keys, &c->new_values};
    enum { N = sizeof(arrays) / sizeof(arrays[0]) };
    for (int i = 0; i < N; i++) {
        EXPECT_OK(msa_memory_alloc(ctx, arrays[i]->bytes, &arrays[i]->data));
        EXPECT_OK(msa_memory_upload(ctx, arrays[i]->data, arrays[i]->host, arrays[i]->bytes));
    }
    msa_kv_view kv = view_of(c, c->old.data);
    if (v.index8) quantize(ctx, c, &kv, &c->cu_old, c->n_old);
    c->workspace.bytes = 0;
    for (int32_t last = 0; last < 2; last++) {
        msa_select_args args = selection(c, &kv, 0, last);
        if (v.index8) args.index8 = index8_of(c);
        msa_plan_init(&c->plans[last]);
        EXPECT_OK(msa_select_plan(ctx, &args, &c->plans[last]));
        if (c->plans[last].workspace_bytes > c->workspace.bytes)
            c->workspace.bytes = c->plans[last].workspace_bytes;
    }
    EXPECT_OK(msa_memory_alloc(ctx, c->workspace.bytes, &c->workspace.data));
    msa_graph *graph = NULL;
    if (v.recorded) EXPECT_OK(msa_graph_begin(ctx));
    run_steps(ctx, c, v);
    if (v.recorded) {
        EXPECT_OK(msa_graph_end(ctx, &graph));
        EXPECT_OK(msa_graph_launch(ctx, graph));
    }
    int32_t *rows = malloc(c->rows.bytes);
    assert_non_null(rows);
    EXPECT_OK(msa_memory_download(ctx, rows, c->rows.data, c->rows.bytes));
    if (v.recorded) msa_graph_destroy(ctx, graph);
    msa_memory_free(ctx, c->workspace.data, c->workspace.bytes);
    for (int i = 0; i < N; i++) msa_memory_free(ctx, arrays[i]->data, arrays[i]->bytes);
    return rows;
}

/* ---- inputs ---------------------------------------------------------------------------------- */

static void fill_whole(array *a, uint64_t stream, int32_t factor)
{
    for (uint64_t i = 0; i < a->bytes / 2; i++) ((uint16_t *)a->host)[i] = whole(stream, i, factor);
}

/* Slots of poison: NaN, and numbers that outdo every key. */
static void fill_keys(chain *c, const batch *old)
{
    uint16_t *keys = array_new(&c->keys, (size_t)c->n_pages * PAGE * DIM, 2);
    for (int64_t i = 0; i < (int64_t)c->n_pages * PAGE * DIM; i++)
        keys[i] = f32_to_bf16(i / DIM % 2 ? 1e30f : NAN);
    for (int32_t s = 0; s < SEQS; s++) {
        for (int64_t i = 0; i < (int64_t)old->lens[s] * DIM; i++) {
            int64_t page = old->pages[s][i / (PAGE * DIM)];
            keys[page * PAGE * DIM + i % (PAGE * DIM)] = whole(20 + (uint64_t)s, (uint64_t)i, 1);
        }
    }
}

/* Sequences some of whose blocks are completed by a step, and more blocks than a row keeps. */
static chain chain_new(const int32_t *n_tokens)
{
    chain c = {0};
    batch *old = array_new(&c.old, 1, sizeof(batch));
    batch *states = array_new(&c.states, STEPS, sizeof(batch));
    int32_t *cu = array_new(&c.cu, SEQS + 1, 4), *cu_last = array_new(&c.cu_last, SEQS + 1, 4);
    int32_t *cu_old = array_new(&c.cu_old, SEQS + 1, 4), lens[SEQS];
    int32_t most = test_backend() && !test_is_reduced() ? 470 : 21; /* several pages a CTA */
    const int32_t n_old[SEQS] = {most * PAGE - 8, 19 * PAGE - 3, 23 * PAGE - 30};
    for (int32_t s = 0; s < SEQS; s++) {
        cu[s + 1] = cu[s] + n_tokens[s];
        cu_last[s + 1] = cu_last[s] + 1;
        cu_old[s + 1] = cu_old[s] + n_old[s];
        old->lens[s] = lens[s] = n_old[s];
        for (int32_t b = 0; b < n_old[s] / PAGE + 2; b++) old->pages[s][b] = c.n_pages++;
    }
    for (int32_t s = 0; s < SEQS; s++) { /* not in order */
        for (int32_t b = 0; b < n_old[s] / PAGE + 2; b++)
            old->pages[s][b] = c.n_pages - 1 - old->pages[s][b];
    }
    for (int32_t step = 0; step < STEPS; step++) {
        for (int32_t place = 0; place < SEQS; place++) {
            int32_t s = (place + step) % SEQS;
            states[step].lens[place] = lens[s] += n_tokens[place];
            memcpy(states[step].pages[place], old->pages[s], sizeof(old->pages[s]));
        }
    }
    c.n_tokens = cu[SEQS];
    c.n_old = cu_old[SEQS];
    array_new(&c.shared, 1, sizeof(batch));
    fill_keys(&c, old);
    array_new(&c.values, (size_t)c.n_pages * PAGE * 16, 4);
    array_new(&c.copy, (size_t)c.n_pages * PAGE * DIM, 1);
    array_new(&c.bounds, (size_t)c.n_pages * 3, 4);
    array_new(&c.new_values, (size_t)c.n_tokens * 16, 4);
    array_new(&c.new_keys, (size_t)(STEPS * c.n_tokens * DIM), 2);
    array_new(&c.q, (size_t)row_ids(&c, STEPS, 0) / TOPK * DIM, 2);
    array_new(&c.rows, (size_t)row_ids(&c, STEPS, 0), 4);
    fill_whole(&c.new_keys, 30, 2); /* better than old ones, so that they are missed */
    fill_whole(&c.q, 31, 1);
    return c;
}

/* ---- tests ----------------------------------------------------------------------------------- */

static void check_chain(const int32_t *n_tokens)
{
    chain c = chain_new(n_tokens);
    msa_context *ref = open_test_context("ref", NULL, 1), *ctx;
    int32_t *expected = run_chain(ref, &c, (variant){0, 0, 0});
    for (int32_t i = 0; (ctx = attention_context(i)) != NULL; i++) {
        for (int n = 0; n < 8; n++) {
            variant v = {n & 1, n >> 1 & 1, n >> 2};
            char label[160];
            if (v.recorded && !msa_context_uses_device_memory(ctx)) continue;
            snprintf(label, sizeof(label), "%s: index8 %d, shared %d, recorded %d",
                     context_label(ctx), v.index8, v.shared, v.recorded);
            int32_t *rows = run_chain(ctx, &c, v);
            expect_same_ids(label, rows, expected, row_ids(&c, STEPS, 0));
            free(rows);
        }
    }
    free(expected);
    msa_context_destroy(ref);
}

static void test_one_token_a_step(void **state)
{
    (void)state;
    check_chain((const int32_t[SEQS]){1, 1, 1});
}

static void test_drafts(void **state)
{
    (void)state;
    check_chain((const int32_t[SEQS]){16, 1, 5});
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_one_token_a_step),
        cmocka_unit_test(test_drafts),
    };
    return cmocka_run_group_tests(tests, NULL, fixture_teardown);
}
