/* select and block_topk against the float64 oracle, on every backend and instruction set. */
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

static int64_t n_rows_seen, n_rows_accepted; /* accepted: another row within the tolerance */

/* LSE over the tokens of the operator's own rows, (M14). */
static void expect_index_lse(const char *label, const problem *p, const results *r)
{
    double scale = (double)(float)(1 / sqrt((double)p->spec.index_dim));
    uint8_t *mask = malloc((size_t)p->n_blocks * (size_t)p->spec.block_size + 1);
    tolerance tol = tolerance_of(p);
    assert_non_null(mask);
    for (int64_t row = 0; row < p->n_tokens * p->spec.n_kv_heads; row++) {
        int64_t i = row / p->spec.n_kv_heads;
        const double *q = problem_q_index(p, i, (int32_t)(row % p->spec.n_kv_heads));
        double sum = 0, max = -HUGE_VAL;
        oracle_mask(p, i, r->blocks + row * p->spec.topk, p->spec.topk, mask);
        for (int pass = 0; pass < 2; pass++) {
            for (int32_t j = 0; j <= p->position[i]; j++) {
                const double *key = problem_k_index(p, p->seq_of[i], j);
                double s = 0;
                if (!mask[j]) continue;
                for (int32_t d = 0; d < p->spec.index_dim; d++) s += scale * q[d] * key[d];
                max = pass == 0 && s > max ? s : max;
                sum += pass == 1 ? exp(s - max) : 0;
            }
        }
        double lse = max + log(sum);
        expect_numbers(label, &r->index_lse[row], &lse, 1, tol.lse, tol.lse);
    }
    free(mask);
}

/* Given the operator's own scores the choice is exact. */
static void expect_rows_of_own_scores(const char *label, const problem *p, const results *r)
{
    int64_t n_rows = p->n_tokens * p->spec.n_kv_heads, n_scores = n_rows * p->n_blocks;
    double *own = malloc((size_t)(n_scores + 1) * sizeof(double));
    assert_non_null(own);
    for (int64_t i = 0; i < n_scores; i++) own[i] = (double)r->block_scores[i];
    int32_t *rows = oracle_rows(p, own);
    expect_same_ids(label, r->blocks, rows, n_rows * p->spec.topk);
    free(rows);
    free(own);
}

/* Optional outputs left out: the same rows; a device may have a kernel of its own for that, which
 * sums in another order. Settled keys change nothing. */
static void expect_rows_alone(msa_context *ctx, const char *label, const problem *p,
                              const double *scores, const results *r)
{
    msa_select_args args = select_args(p);
    int64_t n = p->n_tokens * p->spec.n_kv_heads * p->spec.topk;
    int32_t *rows = malloc((size_t)(2 * n + 1) * sizeof(int32_t));
    args.blocks =
        msa_tensor_make(rows, MSA_DTYPE_I32, 3, p->n_tokens, p->spec.n_kv_heads, p->spec.topk, 1);
    msa_plan plan;
    msa_plan_init(&plan);
    EXPECT_OK(msa_select_plan(ctx, &args, &plan));
    void *workspace = aligned_alloc(64, (plan.workspace_bytes + 127) / 64 * 64);
    for (args.settled = 0; args.settled < 2; args.settled++) {
        args.blocks.data = rows + args.settled * n;
        EXPECT_OK(call_select(ctx, &plan, &args, workspace, plan.workspace_bytes));
    }
    expect_same_ids(label, rows + n, rows, n);
    if (msa_context_uses_device_memory(ctx)) {
        n_rows_accepted += expect_rows(label, p, rows, scores);
        n_rows_seen += n / p->spec.topk;
    } else {
        expect_same_ids(label, rows, r->blocks, n);
    }
    free(workspace);
    free(rows);
}

static void check_case(const problem_spec *spec, void *arg)
{
    (void)arg;
    problem *p = problem_create(spec, 1);
    double *scores = oracle_block_scores(p);
    tolerance tol = tolerance_of(p);
    int64_t n_rows = p->n_tokens * spec->n_kv_heads;
    msa_context *ctx;
    for (int32_t c = 0; (ctx = attention_context(c)) != NULL; c++) {
        char label[160];
        results r;
        snprintf(label, sizeof(label), "%s: %s %s/%s", context_label(ctx), spec->name,
                 msa_dtype_name(spec->q_dtype), msa_dtype_name(spec->cache_dtype));
        run_select(ctx, p, &r);
        expect_numbers(label, r.block_scores, scores, n_rows * p->n_blocks, tol.score, tol.score);
        n_rows_accepted += expect_rows(label, p, r.blocks, scores);
        n_rows_seen += n_rows;
        expect_index_lse(label, p, &r);
        expect_rows_of_own_scores(label, p, &r);
        expect_rows_alone(ctx, label, p, scores, &r);
        results_free(&r);
    }
    free(scores);
    problem_free(p);
}

static void test_select_cases(void **state)
{
    (void)state;
    for_each_case(check_case, NULL);
    print_message("%lld of %lld rows differ within the tolerance\n", (long long)n_rows_accepted,
                  (long long)n_rows_seen);
    assert_true(n_rows_accepted * 100 <= n_rows_seen);
}

/* NaN tokens are ignored, infinities rank at the ends, -0 = +0, and forcing is not by value. */
static void test_select_special_scores(void **state)
{
    (void)state;
    static const float marks[] = {NAN, INFINITY, -INFINITY, -0.0f, 0.0f, 3, -3, 1e30f};
    problem_spec spec = case_named("forced");
    spec.fill = FILL_ZERO;
    problem *p = problem_create(&spec, 2);
    for (int64_t i = 0; i < p->n_tokens * spec.n_kv_heads; i++) p->q_index[i * spec.index_dim] = 1;
    for (int64_t j = 0; j < p->n_keys; j++) {
        uint32_t words[4];
        msa__philox(3, (uint64_t)j / 16, 0, words);
        uint32_t pick = words[0] % 8;                           /* one mark per block, */
        if (pick == 0 && words[1] % 2 && j % 16 == 5) pick = 6; /* some with one number */
        p->k_index[j * spec.index_dim] = (double)marks[pick];
    }
    problem_store(p);
    /* An infinity times the other dimensions' zeros is NaN: keep one dimension's product. */
    double *scores = oracle_block_scores(p);
    msa_context *ctx;
    for (int32_t c = 0; (ctx = attention_context(c)) != NULL; c++) {
        results r;
        run_select(ctx, p, &r);
        expect_rows(context_label(ctx), p, r.blocks, scores);
        expect_numbers(context_label(ctx), r.block_scores, scores,
                       p->n_tokens * spec.n_kv_heads * p->n_blocks, 0, 0);
        results_free(&r);
    }
    free(scores);
    problem_free(p);
}

/* One decode token against 2^20 keys; whole-number scores, so that the answer is exact. */
static void test_select_over_a_million_keys(void **state)
{
    (void)state;
    enum { N_KEYS = 1 << 20, BLOCK = 128, DIM = 16, TOPK = 16 };
    uint16_t *keys = calloc((size_t)N_KEYS * DIM, sizeof(uint16_t));
    int32_t *pages = malloc(N_KEYS / BLOCK * sizeof(int32_t));
    int32_t rows[TOPK], cu[2] = {0, 1}, length = N_KEYS - 5;
    uint16_t q[DIM] = {f32_to_bf16(1)};
    float *maxima = malloc(N_KEYS / BLOCK * sizeof(float));
    for (int32_t b = 0; b < N_KEYS / BLOCK; b++) {
        pages[b] = N_KEYS / BLOCK - 1 - b;
        maxima[b] = -INFINITY;
        for (int32_t j = 0; j < BLOCK && b * BLOCK + j < length; j++) {
            uint32_t words[4];
            msa__philox(5, (uint64_t)(b * BLOCK + j), 0, words);
            float x = (float)(words[0] % 251) * (words[1] % 64 == 0 ? 1 : -1);
            keys[((int64_t)pages[b] * BLOCK + j) * DIM] = f32_to_bf16(x);
            if (x > maxima[b]) maxima[b] = x;
        }
    }
    msa_select_args args;
    msa_select_args_init(&args);
    args.q_index = msa_tensor_make(q, MSA_DTYPE_BF16, 3, 1, 1, DIM, 1);
    args.kv.k_index = msa_tensor_make(keys, MSA_DTYPE_BF16, 3, N_KEYS / BLOCK, BLOCK, DIM, 1);
    args.kv.page_table = pages;
    args.kv.page_table_stride = N_KEYS / BLOCK;
    args.kv.kv_lens = &length;
    args.kv.n_seqs = 1;
    args.cu_seqlens_q = cu;
    args.blocks = msa_tensor_make(rows, MSA_DTYPE_I32, 3, 1, 1, TOPK, 1);
    msa_context *ctx;
    for (int32_t c = 0; (ctx = attention_context(c)) != NULL; c++) {
        msa_plan plan;
        msa_plan_init(&plan);
        EXPECT_OK(msa_select_plan(ctx, &args, &plan));
        void *workspace = aligned_alloc(64, (plan.workspace_bytes + 127) / 64 * 64);
        EXPECT_OK(call_select(ctx, &plan, &args, workspace, plan.workspace_bytes));
        free(workspace);
        assert_int_equal(rows[TOPK - 1], N_KEYS / BLOCK - 1);
        for (int32_t k = 0; k < TOPK - 1; k++) {
            /* A kept block is beaten by fewer than TOPK - 1 others, ties to the lower id. */
            int32_t n_better = 0;
            for (int32_t b = 0; b < N_KEYS / BLOCK - 1; b++) {
                n_better +=
                    maxima[b] > maxima[rows[k]] || (maxima[b] == maxima[rows[k]] && b < rows[k]);
            }
            assert_in_range(n_better, 0, TOPK - 2);
            if (k) assert_true(rows[k] > rows[k - 1]);
        }
    }
    free(keys);
    free(pages);
    free(maxima);
}

/* ---- block_topk ------------------------------------------------------------------------------ */

/* The rule by repeated search for the best of what is left. */
static void search_row(const float *scores, int32_t n_visible, int32_t topk, int32_t n_init,
                       int32_t n_local, int32_t *row)
{
    uint8_t *kept = calloc((size_t)n_visible + 1, 1);
    int32_t n_kept = 0, n = 0;
    for (int32_t b = 0; b < n_visible; b++) {
        kept[b] = b < n_init || b >= n_visible - n_local;
        n_kept += kept[b];
    }
    for (; n_kept < topk && n_kept < n_visible; n_kept++) {
        int32_t best = -1;
        for (int32_t b = 0; b < n_visible; b++) {
            if (kept[b]) continue;
            if (best < 0 || scores[b] > scores[best] ||
                (isnan(scores[best]) && !isnan(scores[b]))) {
                best = b;
            }
        }
        kept[best] = 1;
    }
    for (int32_t b = 0; b < n_visible; b++) {
        if (kept[b]) row[n++] = b;
    }
    while (n < topk) row[n++] = -1;
    free(kept);
}

/* Rows of five kinds: normal, plateaus, all equal, ascending, and full of special values. */
static float special_score(int64_t kind, int64_t block, uint64_t row)
{
    static const float marks[] = {NAN, INFINITY, -INFINITY, -0.0f, 0.0f, 1, -1, 0x1p-149f};
    uint32_t words[4];
    msa__philox(11, (uint64_t)block, row, words);
    switch (kind) {
    case 0:
        return (float)(int32_t)words[0];
    case 1:
        return (float)(words[0] % 3);
    case 2:
        return 7;
    case 3:
        return (float)block;
    default:
        return marks[words[0] % 8];
    }
}

static void test_block_topk_rule(void **state)
{
    (void)state;
    enum { T = 340, GROUPS = 2, N = 300, STRIDE = 311 }; /* 15 settings: 10,200 rows a backend */
    static const int32_t topks[] = {1, 2, 4, 16, 64};
    int64_t n_tokens = test_is_reduced() ? 60 : T;
    float *scores = malloc((size_t)T * GROUPS * STRIDE * sizeof(float));
    int32_t n_visible[T], *rows = malloc((size_t)T * GROUPS * 64 * sizeof(int32_t)), want[64];
    for (int64_t i = 0; i < n_tokens; i++) {
        n_visible[i] = i % 7 == 0 ? (int32_t)i / 7 : (int32_t)(N - i % 60);
        for (int64_t r = 0; r < GROUPS; r++) {
            for (int64_t b = 0; b < STRIDE; b++) {
                /* Blocks that are not visible would win if anyone looked. */
                scores[(i * GROUPS + r) * STRIDE + b] =
                    b < n_visible[i] ? special_score(i % 5, b, (uint64_t)(i * GROUPS + r))
                                     : INFINITY;
            }
        }
    }
    msa_context *ctx;
    for (int32_t c = 0; (ctx = attention_context(c)) != NULL; c++) {
        for (int n = 0; n < 15; n++) {
            msa_block_topk_args args;
            msa_block_topk_args_init(&args);
            args.topk = topks[n / 3];
            args.n_init = args.topk > 4 ? n % 3 : 0;
            args.n_local = n % 5 == 4 ? -1 : args.topk > 4 ? 1 + n % 2 : 1;
            args.scores = msa_tensor_make(scores, MSA_DTYPE_F32, 3, n_tokens, GROUPS, N, 1);
            args.scores.stride[1] = STRIDE;
            args.scores.stride[0] = GROUPS * STRIDE;
            args.n_visible = n_visible;
            args.blocks = msa_tensor_make(rows, MSA_DTYPE_I32, 3, n_tokens, GROUPS, args.topk, 1);
            EXPECT_OK(call_block_topk(ctx, &args));
            for (int64_t row = 0; row < n_tokens * GROUPS; row++) {
                search_row(scores + row * STRIDE, n_visible[row / GROUPS], args.topk, args.n_init,
                           args.n_local, want);
                expect_same_ids(context_label(ctx), rows + row * args.topk, want, args.topk);
            }
        }
    }
    free(rows);
    free(scores);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_select_cases),
        cmocka_unit_test(test_select_special_scores),
        cmocka_unit_test(test_select_over_a_million_keys),
        cmocka_unit_test(test_block_topk_rule),
    };
    return cmocka_run_group_tests(tests, NULL, fixture_teardown);
}
