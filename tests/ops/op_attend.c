/* attend, dense_attend, attend_merge and kv_append against the float64 oracle, on every backend and
 * instruction set. */
#include "harness/cmocka_all.h"
#include "harness/reduced.h"

#include "base/numeric.h"
#include "base/rng.h"
#include "ops/cases.h"
#include "ops/layer_fixture.h"
#include "ops/oracle.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

/* ---- attend ---------------------------------------------------------------------------------- */

static void label_case(char *label, size_t bytes, msa_context *ctx, const problem_spec *spec)
{
    snprintf(label, bytes, "%s: %s %s/%s %s", context_label(ctx), spec->name,
             msa_dtype_name(spec->q_dtype), msa_dtype_name(spec->cache_dtype),
             spec->paged ? "paged" : "packed");
}

static void check_attend_case(const problem_spec *spec, void *arg)
{
    (void)arg;
    problem *p = problem_create(spec, 21);
    double *scores = oracle_block_scores(p);
    int32_t *rows = oracle_rows(p, scores);
    oracle_output want = oracle_attend(p, rows);
    msa_context *ctx;
    for (int32_t c = 0; (ctx = attention_context(c)) != NULL; c++) {
        char label[160];
        results r;
        label_case(label, sizeof(label), ctx, spec);
        run_attend(ctx, p, rows, &r);
        expect_attention(label, p, &want, &r);
        results_free(&r);
    }
    oracle_output_free(&want);
    free(rows);
    free(scores);
    problem_free(p);
}

static void test_attend_cases(void **state)
{
    (void)state;
    for_each_case(check_attend_case, NULL);
}

/* Rows a caller made: empty, without the local block, shorter than K, the same for all tokens. */
static void test_attend_honours_foreign_rows(void **state)
{
    (void)state;
    problem_spec spec = case_named("t-2-below-s");
    problem *p = problem_create(&spec, 22);
    int64_t n_rows = p->n_tokens * spec.n_kv_heads;
    int32_t *rows = malloc((size_t)(n_rows * spec.topk) * sizeof(int32_t));
    for (int64_t row = 0; row < n_rows; row++) {
        int32_t local = p->position[row / spec.n_kv_heads] / spec.block_size;
        const int32_t kinds[5][5] = {{-1, -1, -1, -1, -1},
                                     {0, -1, -1, -1, -1},
                                     {1, 3, -1, -1, -1},
                                     {local, -1, -1, -1, -1},
                                     {0, 1, 2, 3, local}};
        memcpy(rows + row * spec.topk, kinds[row % 5], sizeof(kinds[0]));
    }
    oracle_output want = oracle_attend(p, rows);
    msa_context *ctx;
    for (int32_t c = 0; (ctx = attention_context(c)) != NULL; c++) {
        results r;
        run_attend(ctx, p, rows, &r);
        expect_attention(context_label(ctx), p, &want, &r);
        assert_true(r.lse[0] == -INFINITY); /* an empty row */
        assert_true(r.out[0] == 0 && !signbit(r.out[0]));
        results_free(&r);
    }
    oracle_output_free(&want);
    free(rows);
    problem_free(p);
}

/* Nearly every row selects block 0, as attention sinks make it. */
static void test_attend_with_a_hot_block(void **state)
{
    (void)state;
    problem_spec spec = case_named("t-127-to-129");
    spec.q_dtype = spec.cache_dtype = MSA_DTYPE_BF16;
    problem *p = problem_create(&spec, 25);
    for (int64_t i = 0; i < p->n_tokens; i++) problem_q_index(p, i, 0)[0] = 8;
    for (int32_t s = 0; s < spec.n_seqs; s++) problem_k_index(p, s, 3)[0] = 8;
    problem_store(p);
    double *scores = oracle_block_scores(p);
    int32_t *rows = oracle_rows(p, scores);
    oracle_output want = oracle_attend(p, rows);
    int64_t n_hot = 0;
    for (int64_t i = 0; i < p->n_tokens; i++) n_hot += rows[i * spec.topk] == 0;
    assert_true(n_hot * 100 >= p->n_tokens * 99);
    msa_context *ctx;
    for (int32_t c = 0; (ctx = attention_context(c)) != NULL; c++) {
        results r;
        run_attend(ctx, p, rows, &r);
        expect_attention(context_label(ctx), p, &want, &r);
        results_free(&r);
    }
    oracle_output_free(&want);
    free(rows);
    free(scores);
    problem_free(p);
}

/* A view [T, heads, dim] of memory that lies [heads, T, dim], holding what t holds. */
static msa_tensor heads_outside(const msa_tensor *t)
{
    msa_tensor view = poisoned_tensor(t->dtype, 3, t->shape[1], t->shape[0], t->shape[2], 1, 0);
    int64_t swap = view.stride[0];
    size_t row_bytes = (size_t)t->shape[2] * msa_dtype_bytes(t->dtype);
    view.stride[0] = view.stride[1];
    view.stride[1] = swap;
    view.shape[0] = t->shape[0];
    view.shape[1] = t->shape[1];
    for (int64_t i = 0; i < t->shape[0]; i++) {
        for (int64_t h = 0; h < t->shape[1]; h++) {
            size_t element = msa_dtype_bytes(t->dtype);
            memcpy((char *)view.data + (size_t)(i * view.stride[0] + h * view.stride[1]) * element,
                   (char *)t->data + (size_t)(i * t->stride[0] + h * t->stride[1]) * element,
                   row_bytes);
        }
    }
    return view;
}

/* Strides in another order than the dimensions change no bit. */
static void test_heads_outside_tokens(void **state)
{
    (void)state;
    problem_spec spec = case_named("typical");
    spec.q_dtype = spec.cache_dtype = MSA_DTYPE_BF16;
    problem *p = problem_create(&spec, 26);
    msa_tensor q = p->q_tensor, q_index = p->q_index_tensor;
    msa_tensor turned = heads_outside(&q), turned_index = heads_outside(&q_index);
    msa_context *ctx;
    for (int32_t c = 0; (ctx = attention_context(c)) != NULL; c++) {
        results selected[2], sparse[2], dense[2];
        for (int n = 0; n < 2; n++) {
            p->q_tensor = n ? turned : q;
            p->q_index_tensor = n ? turned_index : q_index;
            run_select(ctx, p, &selected[n]);
            run_attend(ctx, p, selected[0].blocks, &sparse[n]);
            run_dense(ctx, p, NULL, &dense[n]);
        }
        int64_t n_out = p->n_tokens * spec.n_q_heads * spec.head_dim;
        expect_same_ids(context_label(ctx), selected[0].blocks, selected[1].blocks,
                        p->n_tokens * spec.n_kv_heads * spec.topk);
        expect_same_floats(context_label(ctx), sparse[0].out, sparse[1].out, n_out);
        expect_same_floats(context_label(ctx), dense[0].out, dense[1].out, n_out);
        for (int n = 0; n < 2; n++) {
            results_free(&selected[n]);
            results_free(&sparse[n]);
            results_free(&dense[n]);
        }
    }
    free(turned.data);
    free(turned_index.data);
    problem_free(p);
}

/* ---- select_attend --------------------------------------------------------------------------- */

/* The outputs of select and attend, bit for bit. */
static void check_select_attend_case(const problem_spec *spec, void *arg)
{
    (void)arg;
    problem *p = problem_create(spec, 27);
    int64_t n_rows = p->n_tokens * spec->n_kv_heads, n_heads = p->n_tokens * spec->n_q_heads;
    msa_context *ctx;
    for (int32_t c = 0; (ctx = attention_context(c)) != NULL; c++) {
        char label[160];
        results selected, sparse, both;
        label_case(label, sizeof(label), ctx, spec);
        run_select(ctx, p, &selected);
        run_attend(ctx, p, selected.blocks, &sparse);
        run_select_attend(ctx, p, &both);
        expect_same_ids(label, both.blocks, selected.blocks, n_rows * spec->topk);
        expect_same_floats(label, both.out, sparse.out, n_heads * spec->head_dim);
        expect_same_floats(label, both.lse, sparse.lse, n_heads);
        results_free(&selected);
        results_free(&sparse);
        results_free(&both);
    }
    problem_free(p);
}

static void test_select_attend_cases(void **state)
{
    (void)state;
    for_each_case(check_select_attend_case, NULL);
}

/* ---- dense attend ---------------------------------------------------------------------------- */

typedef struct dense_option {
    int64_t window, n_sink_tokens;
    int32_t has_sink_logit;
} dense_option;

static void check_dense_option(const problem *p, const dense_option *option)
{
    float sink_logits[64];
    for (int h = 0; h < 64; h++)
        sink_logits[h] = h % 3 == 2 ? -INFINITY : 0.5f * (float)(h % 5) - 1;
    msa_dense_attend_args args = dense_args(p);
    args.window = option->window;
    args.n_sink_tokens = option->n_sink_tokens;
    args.sink_logit = option->has_sink_logit ? sink_logits : NULL;
    oracle_output want = oracle_dense(p, args.window, args.n_sink_tokens, args.sink_logit);
    msa_context *ctx;
    for (int32_t c = 0; (ctx = attention_context(c)) != NULL; c++) {
        char label[160];
        results r;
        label_case(label, sizeof(label), ctx, &p->spec);
        run_dense(ctx, p, &args, &r);
        expect_attention(label, p, &want, &r);
        results_free(&r);
    }
    oracle_output_free(&want);
}

/* Each case meets plain attention and one of the other options in turn. */
static void check_dense_case(const problem_spec *spec, void *arg)
{
    int *n_cases = arg;
    static const dense_option options[] = {
        {0, 0, 0}, {1, 0, 0}, {17, 0, 1}, {40, 3, 0}, {5, 70, 1}};
    problem *p = problem_create(spec, 23);
    check_dense_option(p, &options[0]);
    if (p->n_blocks < 20) check_dense_option(p, &options[1 + (*n_cases)++ % 4]);
    problem_free(p);
}

static void test_dense_cases(void **state)
{
    (void)state;
    int n_cases = 0;
    for_each_case(check_dense_case, &n_cases);
}

/* One KV head, a prompt of many tiles, enough blocks to be cut into splits. */
static void test_dense_tiles_of_one_head(void **state)
{
    (void)state;
    static const dense_option plain = {0};
    problem_spec spec = case_named("typical");
    spec.n_seqs = spec.n_lens = 1;
    spec.q_lens[0] = 200;
    spec.kv_lens[0] = 600;
    spec.n_q_heads = 16;
    spec.n_kv_heads = 1;
    spec.head_dim = 128;
    problem *p = problem_create(&spec, 5);
    check_dense_option(p, &plain);
    problem_free(p);
}

/* A token alone in its call, which devices cut over its context: around the edges of tiles, short
 * and long. */
typedef struct lone_token {
    int32_t kv_len, n_q_heads, n_kv_heads, head_dim;
    int32_t fp8, paged; /* the cache, else bf16 and packed */
    dense_option option;
} lone_token;

static const lone_token lone_tokens[] = {
    /* S     Hq Hkv  D fp8 paged window sinks logit */
    {1, 16, 1, 128, 0, 1, {0, 0, 0}},       {127, 64, 4, 128, 0, 0, {0, 0, 1}},
    {128, 4, 4, 64, 1, 1, {0, 0, 0}},       {129, 32, 8, 128, 0, 1, {0, 0, 0}},
    {129, 16, 1, 64, 0, 0, {2, 130, 1}},    {2048, 64, 4, 128, 0, 1, {0, 0, 0}},
    {2048, 64, 4, 128, 1, 0, {0, 0, 1}},    {2049, 8, 8, 128, 1, 1, {1, 0, 0}},
    {5000, 32, 8, 64, 0, 1, {0, 0, 1}},     {5000, 32, 2, 128, 0, 0, {700, 70, 1}},
    {5000, 10, 2, 64, 1, 1, {129, 128, 0}}, {5000, 24, 3, 128, 0, 1, {0, 0, 0}},
    {17000, 8, 2, 64, 0, 1, {0, 0, 0}},     {40000, 16, 1, 128, 0, 1, {0, 0, 0}},
    {40000, 16, 1, 128, 1, 0, {0, 0, 1}},   {40000, 8, 2, 64, 0, 0, {30000, 500, 1}},
    {40000, 1, 1, 64, 1, 1, {0, 0, 1}},
};

/* Many tiles for every CTA of a device. */
static const lone_token long_lone_token = {36000, 16, 16, 64, 1, 1, {0, 0, 0}};

static problem_spec lone_spec(const lone_token *token)
{
    problem_spec spec = case_named("decode");
    spec.name = "lone-token";
    spec.n_seqs = spec.n_lens = 1;
    spec.q_lens[0] = 1;
    spec.kv_lens[0] = token->kv_len;
    spec.n_q_heads = token->n_q_heads;
    spec.n_kv_heads = token->n_kv_heads;
    spec.head_dim = token->head_dim;
    spec.block_size = 128;
    spec.q_dtype = MSA_DTYPE_BF16;
    spec.cache_dtype = token->fp8 ? MSA_DTYPE_F8_E4M3 : MSA_DTYPE_BF16;
    spec.paged = token->paged;
    return spec;
}

static void check_lone_token(const lone_token *token)
{
    problem_spec spec = lone_spec(token);
    problem *p = problem_create(&spec, 28);
    check_dense_option(p, &token->option);
    problem_free(p);
}

static void test_dense_lone_tokens(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof(lone_tokens) / sizeof(lone_tokens[0]); i++) {
        if (test_is_reduced() && lone_tokens[i].kv_len > 5000) continue;
        check_lone_token(&lone_tokens[i]);
    }
    if (test_backend() && !test_is_reduced()) check_lone_token(&long_lone_token);
}

static void spoil_key(problem *p, int64_t key)
{
    for (int64_t d = 0; d < (int64_t)p->spec.n_kv_heads * p->spec.head_dim; d++) {
        problem_k(p, 0, key, 0)[d] = (double)NAN;
        problem_v(p, 0, key, 0)[d] = (double)NAN;
    }
}

/* NaN in keys and values between the sink tokens and the window changes no bit; in values that the
 * token sees it reaches their column of their heads. */
static void test_dense_lone_token_meets_nan(void **state)
{
    (void)state;
    static const lone_token tokens[] = {{5000, 32, 2, 128, 0, 1, {300, 40, 0}},
                                        {5000, 8, 2, 64, 1, 0, {300, 40, 1}}};
    static const int64_t hidden[] = {40, 127, 128, 2000, 4608, 4699}, seen[] = {7, 4700, 4999};
    for (int n = 0; n < 2; n++) {
        problem_spec spec = lone_spec(&tokens[n]);
        problem *p = problem_create(&spec, 29);
        msa_dense_attend_args args = dense_args(p);
        args.window = tokens[n].option.window;
        args.n_sink_tokens = tokens[n].option.n_sink_tokens;
        results before[16];
        msa_context *ctx;
        for (int32_t c = 0; (ctx = attention_context(c)) != NULL; c++) {
            assert_in_range(c, 0, 15);
            run_dense(ctx, p, &args, &before[c]);
        }
        for (size_t i = 0; i < sizeof(hidden) / sizeof(hidden[0]); i++) spoil_key(p, hidden[i]);
        problem_store(p);
        for (int32_t c = 0; (ctx = attention_context(c)) != NULL; c++) {
            results after;
            run_dense(ctx, p, &args, &after);
            expect_same_floats(context_label(ctx), before[c].lse, after.lse, spec.n_q_heads);
            expect_same_floats(context_label(ctx), before[c].out, after.out,
                               (int64_t)spec.n_q_heads * spec.head_dim);
            results_free(&before[c]);
            results_free(&after);
        }
        for (int i = 0; i < 3; i++) problem_v(p, 0, seen[i], i % 2)[11 * i + 3] = (double)NAN;
        problem_store(p);
        check_dense_option(p, &tokens[n].option);
        problem_free(p);
    }
}

/* ---- merge ----------------------------------------------------------------------------------- */

enum { MERGE_TOKENS = 9, MERGE_HEADS = 3, MERGE_DIM = 48 };

static float merge_input(uint64_t tensor, int64_t i)
{
    uint32_t words[4];
    msa__philox(31, (uint64_t)i, tensor, words);
    return (float)(int32_t)words[0] * 0x1p-30f;
}

static void check_merge(msa_context *ctx, msa_dtype dtype)
{
    enum { N = MERGE_TOKENS * MERGE_HEADS };
    msa_tensor parts[3], lses[3];
    for (int t = 0; t < 3; t++) {
        parts[t] = poisoned_tensor(dtype, 3, MERGE_TOKENS, MERGE_HEADS, MERGE_DIM, 1, 3);
        lses[t] = poisoned_tensor(MSA_DTYPE_F32, 2, MERGE_TOKENS, MERGE_HEADS, 1, 1, 2);
        for (int64_t row = 0; row < N && t < 2; row++) {
            float lse = 20 * merge_input((uint64_t)t, row);
            int empty = row % 4 == t + 1 || row % 4 == 3; /* one side, the other, both */
            *((float *)lses[t].data + row / MERGE_HEADS * 5 + row % MERGE_HEADS) =
                empty ? -INFINITY : lse;
            for (int64_t d = 0; d < MERGE_DIM && !empty; d++) { /* an empty side keeps its NaN */
                store_f32(parts[t].data, dtype, row * (MERGE_DIM + 3) + d,
                          merge_input((uint64_t)t + 2, row * MERGE_DIM + d));
            }
        }
    }
    msa_attend_merge_args args;
    msa_attend_merge_args_init(&args);
    args.out_a = parts[0];
    args.lse_a = lses[0];
    args.out_b = parts[1];
    args.lse_b = lses[1];
    args.out = parts[2];
    args.lse = lses[2];
    EXPECT_OK(call_attend_merge(ctx, &args));

    float a[N * MERGE_DIM], b[N * MERGE_DIM];
    float *out = malloc(sizeof(a)), lse_a[N], lse_b[N], lse[N];
    read_tensor(&parts[0], a);
    read_tensor(&parts[1], b);
    read_tensor(&parts[2], out);
    read_tensor(&lses[0], lse_a);
    read_tensor(&lses[1], lse_b);
    read_tensor(&lses[2], lse);
    double rounding = dtype == MSA_DTYPE_F32 ? 1e-6 : dtype == MSA_DTYPE_F16 ? 0x1p-10 : 0x1p-7;
    for (int64_t row = 0; row < N; row++) {
        double w_a = exp((double)lse_a[row]), w_b = exp((double)lse_b[row]); /* (M12) unshifted */
        double l = w_a + w_b == 0 ? -HUGE_VAL : log(w_a + w_b);
        expect_numbers("merged lse", &lse[row], &l, 1, 1e-5, 1e-6);
        for (int64_t d = 0; d < MERGE_DIM; d++) {
            int64_t i = row * MERGE_DIM + d;
            double x = (w_a > 0 ? w_a * (double)a[i] : 0) + (w_b > 0 ? w_b * (double)b[i] : 0);
            x = w_a + w_b == 0 ? 0 : x / (w_a + w_b);
            expect_numbers(context_label(ctx), &out[i], &x, 1, 1e-5, rounding);
        }
    }
    /* In place, without the LSE: the same bytes. */
    args.out = parts[0];
    args.lse = (msa_tensor){0};
    EXPECT_OK(call_attend_merge(ctx, &args));
    read_tensor(&parts[0], a);
    expect_same_floats("merge in place", a, out, N * MERGE_DIM);
    free(out);
    for (int t = 0; t < 3; t++) {
        free(parts[t].data);
        free(lses[t].data);
    }
}

static void test_merge(void **state)
{
    (void)state;
    msa_context *ctx;
    for (int32_t c = 0; (ctx = attention_context(c)) != NULL; c++) {
        for (msa_dtype dtype = 0; dtype < 3; dtype++) check_merge(ctx, dtype);
    }
}

/* ---- kv_append ------------------------------------------------------------------------------- */

enum { N_LANES = 3 };

typedef struct lane_bytes {
    size_t n;
    unsigned char *want, *dirty; /* with the new tokens, and with something else in their slots */
} lane_bytes;

static unsigned char *copy_lane(const msa_tensor *lane, size_t n)
{
    unsigned char *copy = malloc(n + 1);
    assert_non_null(copy);
    memcpy(copy, lane->data, n);
    return copy;
}

/* Move the rows of the new tokens out of the problem's cache into `rows`, leaving 77 there. */
static void take_new_rows(problem *p, float *rows[N_LANES])
{
    int64_t n_row = (int64_t)p->spec.n_kv_heads * p->spec.head_dim;
    for (int64_t i = 0; i < p->n_tokens; i++) {
        double *k = problem_k(p, p->seq_of[i], p->position[i], 0);
        double *v = problem_v(p, p->seq_of[i], p->position[i], 0);
        double *k_index = problem_k_index(p, p->seq_of[i], p->position[i]);
        for (int64_t d = 0; d < n_row; d++) {
            rows[0][i * n_row + d] = (float)k[d];
            rows[1][i * n_row + d] = (float)v[d];
            k[d] = v[d] = 77;
        }
        for (int64_t d = 0; d < p->spec.index_dim; d++) {
            rows[2][i * p->spec.index_dim + d] = (float)k_index[d];
            k_index[d] = 77;
        }
    }
}

/* Append the rows to a cache that has something else there: the very bytes of problem_store. */
static void check_append_case(const problem_spec *spec, void *arg)
{
    (void)arg;
    problem *p = problem_create(spec, 24);
    msa_tensor *lanes[N_LANES] = {&p->kv.k, &p->kv.v, &p->kv.k_index};
    lane_bytes bytes[N_LANES];
    float *rows[N_LANES];
    for (int l = 0; l < N_LANES; l++) {
        int64_t n_row = l == 2 ? spec->index_dim : (int64_t)spec->n_kv_heads * spec->head_dim;
        rows[l] = malloc((size_t)(p->n_tokens * n_row + 1) * sizeof(float));
        assert_non_null(rows[l]);
        bytes[l].n =
            (size_t)(lanes[l]->shape[0] * lanes[l]->stride[0]) * msa_dtype_bytes(lanes[l]->dtype);
        bytes[l].want = copy_lane(lanes[l], bytes[l].n);
    }
    take_new_rows(p, rows);
    problem_store(p);
    for (int l = 0; l < N_LANES; l++) bytes[l].dirty = copy_lane(lanes[l], bytes[l].n);

    msa_kv_append_args args;
    msa_kv_append_args_init(&args);
    args.k = msa_tensor_make(rows[0], MSA_DTYPE_F32, 3, p->n_tokens, spec->n_kv_heads,
                             spec->head_dim, 1);
    args.v = msa_tensor_make(rows[1], MSA_DTYPE_F32, 3, p->n_tokens, spec->n_kv_heads,
                             spec->head_dim, 1);
    args.k_index = msa_tensor_make(rows[2], MSA_DTYPE_F32, 2, p->n_tokens, spec->index_dim, 1, 1);
    args.cu_seqlens_q = p->cu_q;
    args.kv = p->kv;
    args.block_size = spec->block_size;
    msa_context *ctx;
    for (int32_t c = 0; (ctx = attention_context(c)) != NULL; c++) {
        for (int l = 0; l < N_LANES; l++) memcpy(lanes[l]->data, bytes[l].dirty, bytes[l].n);
        EXPECT_OK(call_kv_append(ctx, &args));
        for (int l = 0; l < N_LANES; l++) {
            if (memcmp(bytes[l].want, lanes[l]->data, bytes[l].n)) {
                fail_msg("%s: %s lane %d differs", context_label(ctx), spec->name, l);
            }
        }
    }
    for (int l = 0; l < N_LANES; l++) {
        free(bytes[l].want);
        free(bytes[l].dirty);
        free(rows[l]);
    }
    problem_free(p);
}

static void test_append_cases(void **state)
{
    (void)state;
    for_each_case(check_append_case, NULL);
}

/* Every rounding of f32 to each cache dtype: halfway cases, overflow, NaN, infinities. */
static void test_append_rounds_like_the_scalar_conversions(void **state)
{
    (void)state;
    enum { T = 256, DIM = 64, PAGE = 256 };
    static const msa_dtype dtypes[] = {0, 1, 3};
    float *rows = malloc(T * DIM * sizeof(float)), *v = calloc(T * DIM, sizeof(float));
    for (uint64_t i = 0; i < T * DIM; i++) {
        uint32_t words[4];
        msa__philox(41, i, 0, words);
        rows[i] = i % 2
                      ? f32_from_bits(words[0])
                      : f32_from_bits((words[0] & 0x80000000u) | 0x3f800000u | words[1] % 0x200000);
    }
    int32_t cu[2] = {0, T}, length = T, page = 0;
    msa_context *ctx;
    for (int32_t c = 0; (ctx = attention_context(c)) != NULL; c++) {
        for (int n = 0; n < 3; n++) {
            float scale = dtypes[n] == MSA_DTYPE_F8_E4M3 ? 0.37f : 1;
            msa_kv_append_args args;
            msa_kv_append_args_init(&args);
            args.k = msa_tensor_make(rows, MSA_DTYPE_F32, 3, T, 1, DIM, 1);
            args.v = msa_tensor_make(v, MSA_DTYPE_F32, 3, T, 1, DIM, 1);
            args.cu_seqlens_q = cu;
            args.kv.k = poisoned_tensor(dtypes[n], 4, 1, 1, PAGE, DIM, 0);
            args.kv.v = poisoned_tensor(dtypes[n], 4, 1, 1, PAGE, DIM, 0);
            args.kv.k_scale = scale;
            args.kv.page_table = &page;
            args.kv.page_table_stride = 1;
            args.kv.kv_lens = &length;
            args.kv.n_seqs = 1;
            args.block_size = PAGE;
            EXPECT_OK(call_kv_append(ctx, &args));
            for (int64_t i = 0; i < T * DIM; i++) {
                unsigned char want[4] = {0}, *got = (unsigned char *)args.kv.k.data +
                                                    (size_t)i * msa_dtype_bytes(dtypes[n]);
                store_f32(want, dtypes[n], 0, rows[i] / scale);
                if (memcmp(want, got, msa_dtype_bytes(dtypes[n])) && !isnan(rows[i])) {
                    fail_msg("%s: %a as %s", context_label(ctx), (double)rows[i],
                             msa_dtype_name(dtypes[n]));
                }
                if (isnan(rows[i])) assert_true(isnan(load_f32(got, dtypes[n], 0)));
            }
            free(args.kv.k.data);
            free(args.kv.v.data);
        }
    }
    free(rows);
    free(v);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_attend_cases),
        cmocka_unit_test(test_attend_honours_foreign_rows),
        cmocka_unit_test(test_attend_with_a_hot_block),
        cmocka_unit_test(test_heads_outside_tokens),
        cmocka_unit_test(test_select_attend_cases),
        cmocka_unit_test(test_dense_cases),
        cmocka_unit_test(test_dense_tiles_of_one_head),
        cmocka_unit_test(test_dense_lone_tokens),
        cmocka_unit_test(test_dense_lone_token_meets_nan),
        cmocka_unit_test(test_merge),
        cmocka_unit_test(test_append_cases),
        cmocka_unit_test(test_append_rounds_like_the_scalar_conversions),
    };
    return cmocka_run_group_tests(tests, NULL, fixture_teardown);
}
