/* The identities (I1)-(I12) and (I16) of docs/math.md, on every backend and instruction set. (I13)
 * is checked on every row of op_select. "Exact" in the document is bitwise here. */
#include "harness/cmocka_all.h"

#include "ops/cases.h"
#include "ops/layer_fixture.h"
#include "ops/oracle.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

/* Each identity is run in these dtypes. */
static const msa_dtype dtype_pairs[][2] = {{0, 0}, {1, 1}, {1, 3}, {2, 1}};

typedef void (*identity)(msa_context *ctx, const problem_spec *spec);

static void run_everywhere(identity check, const char *shape)
{
    msa_context *ctx;
    for (int32_t c = 0; (ctx = attention_context(c)) != NULL; c++) {
        for (size_t n = 0; n < 4; n++) {
            problem_spec spec = case_named(shape);
            spec.q_dtype = dtype_pairs[n][0];
            spec.cache_dtype = dtype_pairs[n][1];
            check(ctx, &spec);
        }
    }
}

static int64_t n_rows_of(const problem *p)
{
    return p->n_tokens * p->spec.n_kv_heads;
}

static int64_t n_heads_of(const problem *p)
{
    return p->n_tokens * p->spec.n_q_heads;
}

/* Two results of operators that each may be a tolerance away from the truth. */
static void expect_agree(msa_context *ctx, const problem *p, const results *a, const results *b)
{
    tolerance tol = tolerance_of(p);
    int64_t n = n_heads_of(p), dim = p->spec.head_dim;
    for (int64_t i = 0; i < n; i++) {
        double lse = (double)b->lse[i];
        expect_numbers(context_label(ctx), &a->lse[i], &lse, 1, 2 * tol.lse, 2 * tol.lse);
        for (int64_t d = 0; d < dim; d++) {
            double x = (double)b->out[i * dim + d];
            expect_numbers(context_label(ctx), &a->out[i * dim + d], &x, 1, 2 * tol.absolute,
                           2 * tol.relative);
        }
    }
}

static void expect_same(msa_context *ctx, const problem *p, const results *a, const results *b)
{
    expect_same_floats(context_label(ctx), a->lse, b->lse, n_heads_of(p));
    expect_same_floats(context_label(ctx), a->out, b->out, n_heads_of(p) * p->spec.head_dim);
}

static void expect_same_selection(msa_context *ctx, const problem *p, const results *a,
                                  const results *b)
{
    expect_same_ids(context_label(ctx), a->blocks, b->blocks, n_rows_of(p) * p->spec.topk);
    expect_same_floats(context_label(ctx), a->block_scores, b->block_scores,
                       n_rows_of(p) * p->n_blocks);
    expect_same_floats(context_label(ctx), a->index_lse, b->index_lse, n_rows_of(p));
}

/* ---- (I1) K >= N is dense ---------------------------------------------------------------------
 */

static void check_all_blocks(msa_context *ctx, const problem_spec *spec)
{
    problem *p = problem_create(spec, 101);
    results selected, sparse, dense;
    run_select(ctx, p, &selected);
    run_attend(ctx, p, selected.blocks, &sparse);
    run_dense(ctx, p, NULL, &dense);
    expect_agree(ctx, p, &sparse, &dense);
    results_free(&selected);
    results_free(&sparse);
    results_free(&dense);
    problem_free(p);
}

static void test_i1_all_blocks_is_dense(void **state)
{
    (void)state;
    run_everywhere(check_all_blocks, "all-blocks");
}

/* ---- (I2) local block only; (I3) first block and the newest: windows ----------------------------
 */

/* A token's fixed pattern is a window whose length depends on its place in the block. */
static void expect_windows(msa_context *ctx, problem *p, int64_t n_local)
{
    results selected, sparse;
    run_select(ctx, p, &selected);
    run_attend(ctx, p, selected.blocks, &sparse);
    for (int32_t i = 0; i < p->n_tokens; i++) {
        int32_t seq = p->seq_of[i], head_floats = p->spec.n_q_heads * p->spec.head_dim;
        problem_slice one;
        problem_slice_init(&one, p, seq, i - p->cu_q[seq], 1);
        msa_dense_attend_args args = dense_args(&one.p);
        args.window = (n_local - 1) * p->spec.block_size + p->position[i] % p->spec.block_size + 1;
        args.n_sink_tokens = (int64_t)p->spec.n_init * p->spec.block_size;
        results token = {.out = sparse.out + (int64_t)i * head_floats,
                         .lse = sparse.lse + (int64_t)i * p->spec.n_q_heads};
        results dense;
        run_dense(ctx, &one.p, &args, &dense);
        expect_agree(ctx, &one.p, &token, &dense);
        results_free(&dense);
    }
    results_free(&selected);
    results_free(&sparse);
}

static void check_local_only(msa_context *ctx, const problem_spec *spec)
{
    problem *p = problem_create(spec, 102);
    expect_windows(ctx, p, 1);
    problem_free(p);
}

static void check_sink_and_window(msa_context *ctx, const problem_spec *spec)
{
    problem *p = problem_create(spec, 103);
    p->spec.n_init = 1;
    p->spec.n_local = p->spec.topk - 1;
    expect_windows(ctx, p, p->spec.n_local);
    problem_free(p);
}

static void test_i2_local_block_is_block_local_attention(void **state)
{
    (void)state;
    run_everywhere(check_local_only, "local-only");
}

static void test_i3_fixed_pattern_is_sink_and_window(void **state)
{
    (void)state;
    run_everywhere(check_sink_and_window, "forced");
}

/* ---- (I4) splits merge -------------------------------------------------------------------------
 */

static msa_tensor as_tensor(const problem *p, float *data, int32_t n_dims)
{
    return msa_tensor_make(data, MSA_DTYPE_F32, n_dims, p->n_tokens, p->spec.n_q_heads,
                           n_dims == 3 ? p->spec.head_dim : 1, 1);
}

static void merge_into(msa_context *ctx, const problem *p, results *a, const results *b)
{
    msa_attend_merge_args args;
    msa_attend_merge_args_init(&args);
    args.out_a = args.out = as_tensor(p, a->out, 3);
    args.lse_a = args.lse = as_tensor(p, a->lse, 2);
    args.out_b = as_tensor(p, b->out, 3);
    args.lse_b = as_tensor(p, b->lse, 2);
    EXPECT_OK(call_attend_merge(ctx, &args));
}

/* Entry k of a row goes to part k % 2, or the local block alone to part 1. */
static void split_rows(const problem *p, const int32_t *rows, int history, int32_t *parts[2])
{
    int32_t topk = p->spec.topk;
    for (int64_t row = 0; row < n_rows_of(p); row++) {
        int32_t n[2] = {0, 0}, local = p->position[row / p->spec.n_kv_heads] / p->spec.block_size;
        for (int32_t k = 0; k < topk; k++) {
            parts[0][row * topk + k] = parts[1][row * topk + k] = -1;
        }
        for (int32_t k = 0; k < topk && rows[row * topk + k] >= 0; k++) {
            int32_t id = rows[row * topk + k], part = history ? id == local : k % 2;
            parts[part][row * topk + n[part]++] = id;
        }
    }
}

static void check_merge_of_splits(msa_context *ctx, const problem_spec *spec)
{
    problem *p = problem_create(spec, 104);
    results selected, whole;
    run_select(ctx, p, &selected);
    run_attend(ctx, p, selected.blocks, &whole);
    size_t bytes = (size_t)(n_rows_of(p) * spec->topk) * sizeof(int32_t);
    int32_t *parts[2] = {malloc(bytes), malloc(bytes)};
    for (int history = 0; history < 2; history++) {
        results a, b;
        split_rows(p, selected.blocks, history, parts);
        run_attend(ctx, p, parts[0], &a);
        run_attend(ctx, p, parts[1], &b);
        merge_into(ctx, p, &a, &b);
        expect_agree(ctx, p, &a, &whole);
        results_free(&a);
        results_free(&b);
    }
    free(parts[0]);
    free(parts[1]);
    results_free(&selected);
    results_free(&whole);
    problem_free(p);
}

static void test_i4_splits_merge_to_the_whole(void **state)
{
    (void)state;
    run_everywhere(check_merge_of_splits, "typical");
}

/* ---- (I5), (I7) chunks and single tokens --------------------------------------------------------
 */

static void expect_chunk(msa_context *ctx, const problem *p, const problem *chunk, int64_t token,
                         const results *selected, const results *sparse, const results *dense)
{
    int64_t row = token * p->spec.n_kv_heads, head = token * p->spec.n_q_heads;
    results part, want = {.blocks = selected->blocks + row * p->spec.topk,
                          .block_scores = selected->block_scores + row * p->n_blocks,
                          .index_lse = selected->index_lse + row,
                          .out = sparse->out + head * p->spec.head_dim,
                          .lse = sparse->lse + head};
    run_select(ctx, chunk, &part);
    expect_same_selection(ctx, chunk, &part, &want);
    results_free(&part);
    run_attend(ctx, chunk, want.blocks, &part);
    expect_same(ctx, chunk, &part, &want);
    results_free(&part);
    want.out = dense->out + head * p->spec.head_dim;
    want.lse = dense->lse + head;
    run_dense(ctx, chunk, NULL, &part);
    expect_agree(ctx, chunk, &part, &want);
    results_free(&part);
}

static void check_chunks(msa_context *ctx, const problem_spec *spec)
{
    static const int32_t sizes[] = {1, 2, 7, 16, 33};
    problem *p = problem_create(spec, 105);
    results selected, sparse, dense;
    run_select(ctx, p, &selected);
    run_attend(ctx, p, selected.blocks, &sparse);
    run_dense(ctx, p, NULL, &dense);
    for (int32_t seq = 0; seq < spec->n_seqs; seq++) {
        int32_t n_tokens = p->cu_q[seq + 1] - p->cu_q[seq], size = sizes[0];
        for (int32_t first = 0, n = 0; first < n_tokens; first += size, n++) {
            size = sizes[n % 5] < n_tokens - first ? sizes[n % 5] : n_tokens - first;
            problem_slice chunk;
            problem_slice_init(&chunk, p, seq, first, size);
            expect_chunk(ctx, p, &chunk.p, p->cu_q[seq] + first, &selected, &sparse, &dense);
        }
    }
    results_free(&selected);
    results_free(&sparse);
    results_free(&dense);
    problem_free(p);
}

static void test_i5_i7_chunks_and_decode_equal_prefill(void **state)
{
    (void)state;
    run_everywhere(check_chunks, "typical");
    run_everywhere(check_chunks, "t-127-to-129");
}

/* ---- (I6) pages
 * ---------------------------------------------------------------------------------- */

typedef struct everything {
    results selected, sparse, dense;
} everything;

static void run_all(msa_context *ctx, const problem *p, everything *e)
{
    run_select(ctx, p, &e->selected);
    run_attend(ctx, p, e->selected.blocks, &e->sparse);
    run_dense(ctx, p, NULL, &e->dense);
}

static void everything_free(everything *e)
{
    results_free(&e->selected);
    results_free(&e->sparse);
    results_free(&e->dense);
}

static void expect_everything_same(msa_context *ctx, const problem *p, const everything *a,
                                   const everything *b)
{
    expect_same_selection(ctx, p, &a->selected, &b->selected);
    expect_same(ctx, p, &a->sparse, &b->sparse);
    expect_same(ctx, p, &a->dense, &b->dense);
}

static void check_pages(msa_context *ctx, const problem_spec *spec)
{
    problem_spec packed = *spec;
    packed.paged = 0;
    problem *a = problem_create(spec, 106), *b = problem_create(&packed, 106);
    everything paged, contiguous;
    run_all(ctx, a, &paged);
    run_all(ctx, b, &contiguous);
    expect_everything_same(ctx, a, &paged, &contiguous);
    everything_free(&paged);
    everything_free(&contiguous);
    problem_free(a);
    problem_free(b);
}

static void test_i6_paged_equals_contiguous(void **state)
{
    (void)state;
    run_everywhere(check_pages, "typical");
    run_everywhere(check_pages, "short-documents");
}

/* Two sequences with the same first tokens, and then with the same first pages. */
static void check_shared_prefix(msa_context *ctx, const problem_spec *spec)
{
    problem *p = problem_create(spec, 107);
    int32_t n_shared = 2 * spec->block_size;
    size_t row = (size_t)(spec->n_kv_heads * spec->head_dim) * sizeof(double);
    memcpy(problem_k(p, 1, 0, 0), problem_k(p, 0, 0, 0), (size_t)n_shared * row);
    memcpy(problem_v(p, 1, 0, 0), problem_v(p, 0, 0, 0), (size_t)n_shared * row);
    memcpy(problem_k_index(p, 1, 0), problem_k_index(p, 0, 0),
           (size_t)(n_shared * spec->index_dim) * sizeof(double));
    problem_store(p);
    everything own, shared;
    run_all(ctx, p, &own);
    for (int32_t b = 0; b < 2; b++) p->page_table[p->kv.page_table_stride + b] = p->page_table[b];
    run_all(ctx, p, &shared);
    expect_everything_same(ctx, p, &own, &shared);
    everything_free(&own);
    everything_free(&shared);
    problem_free(p);
}

static void test_i6_shared_pages_equal_own_pages(void **state)
{
    (void)state;
    run_everywhere(check_shared_prefix, "typical");
}

/* ---- (I8) order inside a block
 * -------------------------------------------------------------------- */

static void swap_rows(double *a, double *b, int64_t n)
{
    for (int64_t d = 0; d < n; d++) {
        double swap = a[d];
        a[d] = b[d];
        b[d] = swap;
    }
}

static void check_order_inside_blocks(msa_context *ctx, const problem_spec *spec)
{
    problem *p = problem_create(spec, 108);
    everything before, after;
    run_all(ctx, p, &before);
    /* Turn every block around that is history for all tokens of its sequence. */
    for (int32_t s = 0; s < spec->n_seqs; s++) {
        int32_t first_local = p->position[p->cu_q[s]] / spec->block_size;
        for (int32_t b = 0; b < first_local; b++) {
            for (int32_t j = 0; j < spec->block_size / 2; j++) {
                int32_t left = b * spec->block_size + j, right = (b + 1) * spec->block_size - 1 - j;
                int64_t n = (int64_t)spec->n_kv_heads * spec->head_dim;
                swap_rows(problem_k(p, s, left, 0), problem_k(p, s, right, 0), n);
                swap_rows(problem_v(p, s, left, 0), problem_v(p, s, right, 0), n);
                swap_rows(problem_k_index(p, s, left), problem_k_index(p, s, right),
                          spec->index_dim);
            }
        }
    }
    problem_store(p);
    run_all(ctx, p, &after);
    expect_same_ids(context_label(ctx), before.selected.blocks, after.selected.blocks,
                    n_rows_of(p) * spec->topk);
    expect_same_floats(context_label(ctx), before.selected.block_scores,
                       after.selected.block_scores, n_rows_of(p) * p->n_blocks);
    expect_agree(ctx, p, &before.sparse, &after.sparse);
    everything_free(&before);
    everything_free(&after);
    problem_free(p);
}

static void test_i8_order_inside_a_block_does_not_matter(void **state)
{
    (void)state;
    run_everywhere(check_order_inside_blocks, "typical");
    run_everywhere(check_order_inside_blocks, "t-2-below-s");
}

/* ---- (I9) scaled and permuted index queries
 * ------------------------------------------------------- */

static void check_index_queries(msa_context *ctx, const problem_spec *spec)
{
    problem *p = problem_create(spec, 109);
    results before, scaled, swapped;
    int64_t n_row = (int64_t)spec->topk;
    run_select(ctx, p, &before);
    for (int64_t i = 0; i < p->n_tokens * spec->n_kv_heads * spec->index_dim; i++)
        p->q_index[i] *= 8;
    problem_store(p);
    run_select(ctx, p, &scaled);
    expect_same_ids(context_label(ctx), before.blocks, scaled.blocks, n_rows_of(p) * n_row);
    for (int64_t i = 0; i < p->n_tokens; i++) {
        swap_rows(problem_q_index(p, i, 0), problem_q_index(p, i, 1), spec->index_dim);
    }
    problem_store(p);
    run_select(ctx, p, &swapped);
    for (int64_t row = 0; row < n_rows_of(p); row++) { /* two groups: the other one is row ^ 1 */
        expect_same_ids(context_label(ctx), before.blocks + row * n_row,
                        swapped.blocks + (row ^ 1) * n_row, n_row);
    }
    results_free(&before);
    results_free(&scaled);
    results_free(&swapped);
    problem_free(p);
}

static void test_i9_index_queries_scale_and_permute(void **state)
{
    (void)state;
    run_everywhere(check_index_queries, "typical");
}

/* ---- (I10) captured mass
 * ---------------------------------------------------------------------------- */

static void check_captured_mass(msa_context *ctx, const problem_spec *spec)
{
    problem *p = problem_create(spec, 110);
    double slack = 4 * tolerance_of(p).lse;
    int64_t n_below_one = 0;
    everything e;
    run_all(ctx, p, &e);
    for (int64_t i = 0; i < n_heads_of(p); i++) {
        double mass = exp((double)e.sparse.lse[i] - (double)e.dense.lse[i]);
        assert_true(mass > 0 && mass <= 1 + slack);
        n_below_one += mass < 0.9;
    }
    assert_true(n_below_one > 0); /* the selection left something out */
    everything_free(&e);
    problem_free(p);
}

static void test_i10_captured_mass_is_at_most_one(void **state)
{
    (void)state;
    run_everywhere(check_captured_mass, "typical");
}

/* ---- (I11) constant values, zero queries
 * -------------------------------------------------------------- */

static void check_constant_values(msa_context *ctx, const problem_spec *spec)
{
    problem *p = problem_create(spec, 111);
    for (int64_t i = 0; i < p->n_keys * spec->n_kv_heads * spec->head_dim; i++) p->v[i] = 1.5;
    problem_store(p);
    tolerance tol = tolerance_of(p);
    everything e;
    run_all(ctx, p, &e);
    for (int64_t i = 0; i < n_heads_of(p) * spec->head_dim; i++) {
        double want = 1.5;
        expect_numbers(context_label(ctx), &e.sparse.out[i], &want, 1, tol.absolute, 0);
        expect_numbers(context_label(ctx), &e.dense.out[i], &want, 1, tol.absolute, 0);
    }
    everything_free(&e);

    /* Zero queries: L = ln |A|, |A| = (n_i - 1) Bk + (p mod Bk) + 1 (M10). */
    for (int64_t i = 0; i < n_heads_of(p) * spec->head_dim; i++) p->q[i] = 0;
    problem_store(p);
    run_all(ctx, p, &e);
    for (int64_t i = 0; i < n_heads_of(p); i++) {
        int32_t position = p->position[i / spec->n_q_heads], local = position / spec->block_size;
        int32_t n_kept = local + 1 < spec->topk ? local + 1 : spec->topk;
        double lse =
            log((double)((n_kept - 1) * spec->block_size + position % spec->block_size + 1));
        double dense_lse = log(position + 1.0);
        expect_numbers(context_label(ctx), &e.sparse.lse[i], &lse, 1, 1e-5, 1e-6);
        expect_numbers(context_label(ctx), &e.dense.lse[i], &dense_lse, 1, 1e-5, 1e-6);
    }
    everything_free(&e);
    problem_free(p);
}

static void test_i11_constant_values_and_zero_queries(void **state)
{
    (void)state;
    run_everywhere(check_constant_values, "typical");
}

/* ---- (I12) what must not be seen
 * ----------------------------------------------------------------------- */

/* Fill slots no token uses: the rest of last pages, unused pages, rows behind the packed keys. */
static void repaint_unused(problem *p, unsigned char byte)
{
    const msa_tensor *lanes[3] = {&p->kv.k, &p->kv.v, &p->kv.k_index};
    for (int l = 0; l < 3; l++) {
        size_t bytes =
            (size_t)(lanes[l]->shape[0] * lanes[l]->stride[0]) * msa_dtype_bytes(lanes[l]->dtype);
        memset(lanes[l]->data, byte, bytes);
    }
    problem_store(p);
}

static void check_unused_slots(msa_context *ctx, const problem_spec *spec)
{
    for (int32_t paged = 0; paged < 2; paged++) {
        problem_spec layout = *spec;
        layout.paged = paged;
        problem *p = problem_create(&layout, 112); /* unused slots are NaN */
        everything nan, zero, large;
        run_all(ctx, p, &nan);
        repaint_unused(p, 0);
        run_all(ctx, p, &zero);
        repaint_unused(p, 0x7e); /* huge in f32 and bf16, the maximum in fp8 */
        run_all(ctx, p, &large);
        expect_everything_same(ctx, p, &nan, &zero);
        expect_everything_same(ctx, p, &nan, &large);
        everything_free(&nan);
        everything_free(&zero);
        everything_free(&large);
        problem_free(p);
    }
}

/* Spoil the newest token of each sequence: all earlier tokens keep their bits. */
static void check_future_tokens(msa_context *ctx, const problem_spec *spec)
{
    problem *p = problem_create(spec, 113);
    everything before, after;
    run_all(ctx, p, &before);
    for (int32_t s = 0; s < spec->n_seqs; s++) {
        int32_t last = p->kv_lens[s] - 1;
        if (last < 0) continue;
        for (int64_t d = 0; d < (int64_t)spec->n_kv_heads * spec->head_dim; d++) {
            problem_k(p, s, last, 0)[d] = (double)NAN;
            problem_v(p, s, last, 0)[d] = (double)NAN;
        }
        for (int64_t d = 0; d < spec->index_dim; d++) problem_k_index(p, s, last)[d] = 50;
    }
    problem_store(p);
    run_all(ctx, p, &after);
    for (int64_t i = 0; i < p->n_tokens; i++) {
        if (p->position[i] == p->kv_lens[p->seq_of[i]] - 1) continue;
        int64_t row = i * spec->n_kv_heads, head = i * spec->n_q_heads, dim = spec->head_dim;
        expect_same_ids(context_label(ctx), before.selected.blocks + row * spec->topk,
                        after.selected.blocks + row * spec->topk, spec->n_kv_heads * spec->topk);
        expect_same_floats(context_label(ctx), before.selected.block_scores + row * p->n_blocks,
                           after.selected.block_scores + row * p->n_blocks,
                           (int64_t)spec->n_kv_heads * p->n_blocks);
        expect_same_floats(context_label(ctx), before.sparse.out + head * dim,
                           after.sparse.out + head * dim, spec->n_q_heads * dim);
        expect_same_floats(context_label(ctx), before.dense.out + head * dim,
                           after.dense.out + head * dim, spec->n_q_heads * dim);
    }
    everything_free(&before);
    everything_free(&after);
    problem_free(p);
}

static void test_i12_unused_slots_are_not_seen(void **state)
{
    (void)state;
    run_everywhere(check_unused_slots, "typical");
}

static void test_i12_future_tokens_are_not_seen(void **state)
{
    (void)state;
    run_everywhere(check_future_tokens, "typical");
    run_everywhere(check_future_tokens, "around-a-block");
}

/* ---- (I16) the learned sink
 * ------------------------------------------------------------------------------ */

static void check_sink_logit(msa_context *ctx, const problem_spec *spec)
{
    problem *p = problem_create(spec, 116);
    float none[64], some[64];
    for (int h = 0; h < 64; h++) {
        none[h] = -INFINITY;
        some[h] = 0.75f * (float)h - 1;
    }
    msa_dense_attend_args args = dense_args(p);
    args.window = 21;
    results plain, without, with, sink;
    run_dense(ctx, p, &args, &plain);
    args.sink_logit = none;
    run_dense(ctx, p, &args, &without);
    expect_same(ctx, p, &plain, &without);
    args.sink_logit = some;
    run_dense(ctx, p, &args, &with);
    /* One extra key of score x and value 0 is a partial result (0, x). */
    run_dense(ctx, p, &args, &sink);
    for (int64_t i = 0; i < n_heads_of(p); i++) sink.lse[i] = some[i % spec->n_q_heads];
    memset(sink.out, 0, (size_t)(n_heads_of(p) * spec->head_dim) * sizeof(float));
    merge_into(ctx, p, &plain, &sink);
    expect_agree(ctx, p, &with, &plain);
    results_free(&plain);
    results_free(&without);
    results_free(&with);
    results_free(&sink);
    problem_free(p);
}

static void test_i16_sink_logit_is_an_extra_key(void **state)
{
    (void)state;
    run_everywhere(check_sink_logit, "typical");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_i1_all_blocks_is_dense),
        cmocka_unit_test(test_i2_local_block_is_block_local_attention),
        cmocka_unit_test(test_i3_fixed_pattern_is_sink_and_window),
        cmocka_unit_test(test_i4_splits_merge_to_the_whole),
        cmocka_unit_test(test_i5_i7_chunks_and_decode_equal_prefill),
        cmocka_unit_test(test_i6_paged_equals_contiguous),
        cmocka_unit_test(test_i6_shared_pages_equal_own_pages),
        cmocka_unit_test(test_i8_order_inside_a_block_does_not_matter),
        cmocka_unit_test(test_i9_index_queries_scale_and_permute),
        cmocka_unit_test(test_i10_captured_mass_is_at_most_one),
        cmocka_unit_test(test_i11_constant_values_and_zero_queries),
        cmocka_unit_test(test_i12_unused_slots_are_not_seen),
        cmocka_unit_test(test_i12_future_tokens_are_not_seen),
        cmocka_unit_test(test_i16_sink_logit_is_an_extra_key),
    };
    return cmocka_run_group_tests(tests, NULL, fixture_teardown);
}
