/* token_select and token_attend: the K best tokens of (D1), (D2) against float64, ties included,
 * and attention over them against that over masks, on the cases of the other attention operators.
 */
#include "harness/cmocka_all.h"

#include "ops/cases.h"
#include "ops/layer_gradient.h"
#include "ops/oracle.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

/* ---- selection ------------------------------------------------------------------------------- */

/* Index queries of a problem: its own, or its queries where their width is that of the keys. */
typedef struct {
    msa_tensor tensor;
    const double *truth;
    int32_t n_heads;
} index_queries;

/* Small whole numbers and halves, a zero and negative ones among them: exact products. */
static float weight_of(int64_t i, int64_t h)
{
    return (float)((i * 7 + h * 5) % 9 - 2) * 0.5f;
}

static int32_t *run_select_tokens(msa_context *ctx, const problem *p, const index_queries *q,
                                  int64_t topk)
{
    msa_token_select_args args;
    msa_token_select_args_init(&args);
    args.q_index = q->tensor;
    args.weights = tensor_new(MSA_DTYPE_F32, 2, p->n_tokens, q->n_heads, 0, 1);
    for (int64_t e = 0; e < p->n_tokens * q->n_heads; e++) {
        tensor_set(&args.weights, e / q->n_heads, e % q->n_heads, 0,
                   (double)weight_of(e / q->n_heads, e % q->n_heads));
    }
    args.kv = p->kv;
    args.kv.k = args.kv.v = (msa_tensor){0};
    args.cu_seqlens_q = p->cu_q;
    args.block_size = p->spec.block_size;
    args.tokens = tensor_new(MSA_DTYPE_I32, 2, p->n_tokens, topk, 0, 2);
    msa_plan plan;
    msa_plan_init(&plan);
    EXPECT_OK(msa_token_select_plan(ctx, &args, &plan));
    EXPECT_OK(call_token_select(ctx, &plan, &args, fixture_workspace(plan.workspace_bytes),
                                plan.workspace_bytes));
    int32_t *rows = fixture_alloc((size_t)(p->n_tokens * topk) * sizeof(*rows) + 1);
    read_tensor(&args.tokens, rows);
    return rows;
}

/* (D1) of one token, [position + 1]. */
static void exact_scores(const problem *p, const index_queries *q, int64_t i, double *scores)
{
    int64_t dim = p->spec.index_dim;
    for (int32_t j = 0; j <= p->position[i]; j++) {
        const double *key = problem_k_index(p, p->seq_of[i], j);
        scores[j] = 0;
        for (int64_t h = 0; h < q->n_heads; h++) {
            double z = 0;
            for (int64_t d = 0; d < dim; d++) {
                z += q->truth[(i * q->n_heads + h) * dim + d] * key[d];
            }
            scores[j] += (double)weight_of(i, h) * fmax(z, 0);
        }
    }
}

static void check_row(const char *label, const problem *p, int64_t i, const double *scores,
                      int64_t topk, const int32_t *row)
{
    int64_t n_visible = p->position[i] + 1, n_kept = n_visible < topk ? n_visible : topk;
    double margin = p->spec.fill == FILL_NORMAL ? 1e-4 : 0, worst = HUGE_VAL;
    int32_t worst_token = -1, previous = -1;
    for (int64_t k = 0; k < topk; k++) {
        if (k >= n_kept) {
            assert_int_equal(row[k], -1);
            continue;
        }
        if (row[k] <= previous || row[k] >= n_visible) {
            fail_msg("%s: token %d: %d after %d", label, (int)i, row[k], previous);
        }
        previous = row[k];
        if (scores[row[k]] <= worst) worst = scores[row[k]], worst_token = row[k];
    }
    for (int32_t j = 0, k = 0; j < n_visible && n_kept < n_visible; j++) {
        if (k < n_kept && row[k] == j) {
            k++;
            continue;
        }
        double room = margin * fmax(1, fabs(worst));
        if (scores[j] < worst + room || (scores[j] == worst && j > worst_token)) continue;
        fail_msg("%s: token %d keeps %d (%g) before %d (%g)", label, (int)i, worst_token, worst, j,
                 scores[j]);
    }
}

static void check_selection(msa_context *ctx, const problem *p, const index_queries *q,
                            int64_t topk)
{
    char label[128];
    int32_t *rows = run_select_tokens(ctx, p, q, topk);
    int32_t longest = 0;
    for (int64_t i = 0; i < p->n_tokens; i++) {
        if (p->position[i] > longest) longest = p->position[i];
    }
    double *scores = malloc(((size_t)longest + 1) * sizeof(*scores));
    assert_non_null(scores);
    snprintf(label, sizeof(label), "%s %s K %d, %d heads", context_label(ctx), p->spec.name,
             (int)topk, q->n_heads);
    for (int64_t i = 0; i < p->n_tokens; i++) {
        exact_scores(p, q, i, scores);
        check_row(label, p, i, scores, topk, rows + i * topk);
    }
    free(scores);
}

/* ---- attention ------------------------------------------------------------------------------- */

static results run_attend_tokens(msa_context *ctx, const problem *p, msa_tensor tokens)
{
    msa_token_attend_args args;
    msa_token_attend_args_init(&args);
    args.q = p->q_tensor;
    args.kv = p->kv;
    args.kv.k_index = (msa_tensor){0};
    args.cu_seqlens_q = p->cu_q;
    args.tokens = tokens;
    args.block_size = p->spec.block_size;
    args.out = tensor_new(p->spec.q_dtype, 3, p->n_tokens, p->spec.n_q_heads, p->spec.head_dim,
                          p->spec.oversized ? 3 : 0);
    args.lse = tensor_new(MSA_DTYPE_F32, 2, p->n_tokens, p->spec.n_q_heads, 0, 0);
    msa_plan plan;
    msa_plan_init(&plan);
    EXPECT_OK(msa_token_attend_plan(ctx, &args, &plan));
    EXPECT_OK(call_token_attend(ctx, &plan, &args, fixture_workspace(plan.workspace_bytes),
                                plan.workspace_bytes));
    results r;
    int64_t n = p->n_tokens * p->spec.n_q_heads;
    memset(&r, 0, sizeof(r));
    r.out = fixture_alloc((size_t)(n * p->spec.head_dim) * sizeof(float) + 1);
    r.lse = fixture_alloc((size_t)n * sizeof(float) + 1);
    read_tensor(&args.out, r.out);
    read_tensor(&args.lse, r.lse);
    return r;
}

/* The visible tokens of each token's row of blocks, one row for all groups. */
static msa_tensor tokens_of_blocks(const problem *p, const int32_t *rows, int32_t topk)
{
    int64_t width = (int64_t)topk * p->spec.block_size;
    msa_tensor tokens = tensor_new(MSA_DTYPE_I32, 2, p->n_tokens, width, 0, 1);
    for (int64_t i = 0; i < p->n_tokens; i++) {
        int32_t *out = (int32_t *)tokens.data + i * tokens.stride[0];
        int64_t n = 0;
        for (int32_t k = 0; k < topk && rows[i * p->spec.n_kv_heads * topk + k] >= 0; k++) {
            int32_t first = rows[i * p->spec.n_kv_heads * topk + k] * p->spec.block_size;
            for (int32_t j = first; j < first + p->spec.block_size && j <= p->position[i]; j++) {
                out[n++] = j;
            }
        }
        while (n < width) out[n++] = -1;
    }
    return tokens;
}

/* All groups get the rows of the first one; every fifth token none at all. */
static int32_t *shared_rows(const problem *p)
{
    double *scores = oracle_block_scores(p);
    int32_t *rows = oracle_rows(p, scores), topk = p->spec.topk, n_kv = p->spec.n_kv_heads;
    for (int64_t i = 0; i < p->n_tokens; i++) {
        for (int64_t e = 0; e < n_kv * topk; e++) {
            int32_t *row = rows + i * n_kv * topk;
            row[e] = i % 5 == 4 ? -1 : row[e % topk];
        }
    }
    free(scores);
    return rows;
}

static void check_case(const problem_spec *spec, void *arg)
{
    (void)arg;
    problem *p = problem_create(spec, 51);
    int32_t *rows = shared_rows(p);
    oracle_output want = oracle_attend(p, rows);
    index_queries own = {p->q_index_tensor, p->q_index, spec->n_kv_heads};
    index_queries main = {p->q_tensor, p->q, spec->n_q_heads};
    msa_context *ctx;
    for (int32_t c = 0; (ctx = attention_context(c)) != NULL; c++) {
        check_selection(ctx, p, &own, 1);
        check_selection(ctx, p, &own, 20);
        if (spec->head_dim == spec->index_dim) check_selection(ctx, p, &main, 33);
        results got = run_attend_tokens(ctx, p, tokens_of_blocks(p, rows, spec->topk));
        expect_attention(context_label(ctx), p, &want, &got);
    }
    oracle_output_free(&want);
    free(rows);
    problem_free(p);
    fixture_teardown(NULL);
}

static void test_selection_and_attention(void **state)
{
    (void)state;
    for_each_case(check_case, NULL);
}

/* K >= S is dense attention. */
static void test_all_tokens_are_dense(void **state)
{
    (void)state;
    msa_context *ctx;
    for (int32_t c = 0; (ctx = attention_context(c)) != NULL; c++) {
        problem_spec spec = case_named("typical");
        problem *p = problem_create(&spec, 52);
        index_queries own = {p->q_index_tensor, p->q_index, spec.n_kv_heads};
        int32_t *rows = run_select_tokens(ctx, p, &own, 100);
        msa_tensor tokens = msa_tensor_make(rows, MSA_DTYPE_I32, 2, p->n_tokens, 100, 0, 0);
        oracle_output dense = oracle_dense(p, 0, 0, NULL);
        results got = run_attend_tokens(ctx, p, tokens);
        expect_attention(context_label(ctx), p, &dense, &got);
        oracle_output_free(&dense);
        problem_free(p);
    }
}

static void test_arguments_are_checked(void **state)
{
    (void)state;
    problem_spec spec = case_named("typical");
    problem *p = problem_create(&spec, 53);
    msa_context *ctx = context_at(0);
    msa_token_attend_args args;
    msa_plan plan;
    msa_plan_init(&plan);
    msa_token_attend_args_init(&args);
    args.q = p->q_tensor;
    args.kv = p->kv;
    args.cu_seqlens_q = p->cu_q;
    args.block_size = spec.block_size;
    args.tokens = tensor_new(MSA_DTYPE_I32, 2, p->n_tokens, 3, 0, 0); /* -1 throughout */
    args.out = tensor_new(spec.q_dtype, 3, p->n_tokens, spec.n_q_heads, spec.head_dim, 0);
    EXPECT_OK(msa_token_attend_plan(ctx, &args, &plan));
    if (strcmp(msa_context_backend(ctx), "cuda") == 0) { /* a device's rows are not read here */
        problem_free(p);
        return;
    }
    EXPECT_OK(msa_token_attend(ctx, &plan, &args, NULL, 0));
    int32_t *row = (int32_t *)args.tokens.data + 3;
    row[0] = row[1] = 5;
    EXPECT_FAIL(MSA_EINVAL, "token_attend: tokens[1][1] = 5, must ascend within 0..81",
                msa_token_attend(ctx, &plan, &args, NULL, 0));
    row[1] = 82;
    EXPECT_FAIL(MSA_EINVAL, "tokens[1][1] = 82", msa_token_attend(ctx, &plan, &args, NULL, 0));
    row[1] = -1, row[2] = 9;
    EXPECT_FAIL(MSA_EINVAL, "tokens[1][2] = 9", msa_token_attend(ctx, &plan, &args, NULL, 0));
    problem_free(p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_selection_and_attention, fixture_teardown),
        cmocka_unit_test_teardown(test_all_tokens_are_dense, fixture_teardown),
        cmocka_unit_test_teardown(test_arguments_are_checked, fixture_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
