/* MoBA: mean keys and the rows of (B2)-(B4) against float64, on the cases of the other attention
 * operators; and that attention over rows of heads is a set of strided calls. */
#include "harness/cmocka_all.h"

#include "base/numeric.h"
#include "ops/block_means.h"
#include "ops/calls.h"
#include "ops/cases.h"
#include "ops/layer_fixture.h"
#include "ops/oracle.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

/* ---- calls ----------------------------------------------------------------------------------- */

static msa_tensor new_means(const problem *p)
{
    const msa_tensor *k = &p->kv.k;
    int64_t n = k->shape[0];
    if (!p->spec.paged) n = n / p->spec.block_size + p->spec.n_seqs;
    return tensor_new(MSA_DTYPE_F32, 3, n, p->spec.n_kv_heads, p->spec.head_dim,
                      p->spec.oversized ? 3 : 0);
}

/* Blocks that became full with the tokens of cu. */
static void run_means(msa_context *ctx, const problem *p, const int32_t *cu, msa_tensor means)
{
    msa_block_means_args args;
    msa_block_means_args_init(&args);
    args.kv = p->kv;
    args.kv.v = args.kv.k_index = (msa_tensor){0};
    args.cu_seqlens_q = cu;
    args.n_tokens = cu[p->spec.n_seqs];
    args.block_size = p->spec.block_size;
    args.means = means;
    EXPECT_OK(call_block_means(ctx, &args));
}

static msa_moba_select_args select_args_of(const problem *p, msa_tensor means, int32_t n_pages,
                                           int32_t topk)
{
    msa_moba_select_args args;
    msa_moba_select_args_init(&args);
    args.q = p->q_tensor;
    args.kv = p->kv;
    args.kv.v = args.kv.k_index = (msa_tensor){0};
    args.cu_seqlens_q = p->cu_q;
    args.means = means;
    args.block_size = p->spec.block_size;
    args.n_pages = n_pages;
    args.topk = topk;
    return args;
}

/* Rows [T, n_heads, K m], contiguous. */
static int32_t *run_moba(msa_context *ctx, const problem *p, msa_tensor means, int32_t n_pages,
                         int32_t topk, int32_t n_heads)
{
    msa_moba_select_args args = select_args_of(p, means, n_pages, topk);
    int64_t n_ids = (int64_t)topk * n_pages;
    args.blocks =
        tensor_new(MSA_DTYPE_I32, 3, p->n_tokens, n_heads, n_ids, p->spec.oversized ? 3 : 0);
    msa_plan plan;
    msa_plan_init(&plan);
    EXPECT_OK(msa_moba_select_plan(ctx, &args, &plan));
    void *workspace = fixture_workspace(plan.workspace_bytes);
    EXPECT_OK(call_moba_select(ctx, &plan, &args, workspace, plan.workspace_bytes));
    int32_t *rows = fixture_alloc((size_t)(p->n_tokens * n_heads * n_ids) * sizeof(*rows) + 1);
    read_tensor(&args.blocks, rows);
    return rows;
}

/* ---- truth ----------------------------------------------------------------------------------- */

static double exact_mean(const problem *p, int32_t seq, int64_t block, int32_t head, int64_t d)
{
    double sum = 0;
    for (int64_t j = 0; j < p->spec.block_size; j++) {
        sum += problem_k(p, seq, block * p->spec.block_size + j, head)[d];
    }
    return sum / p->spec.block_size;
}

/* (B2) of history block b for row r of n_heads. */
static double exact_gate(const problem *p, const double *means, int64_t token, int32_t n_heads,
                         int32_t r, int64_t b, int32_t n_pages)
{
    int32_t dim = p->spec.head_dim, group = p->spec.n_q_heads / p->spec.n_kv_heads;
    int32_t of_row = p->spec.n_q_heads / n_heads;
    double sum = 0;
    for (int32_t h = r * of_row; h < (r + 1) * of_row; h++) {
        for (int64_t page = b * n_pages; page < (b + 1) * n_pages; page++) {
            const double *mean =
                means + ((p->seq_of[token] * (int64_t)p->n_blocks + page) * p->spec.n_kv_heads +
                         h / group) *
                            dim;
            for (int32_t d = 0; d < dim; d++) sum += problem_q(p, token, h)[d] * mean[d];
        }
    }
    return sum;
}

/* Means of full blocks, [n_seqs, N, Hkv, D]. */
static double *exact_means(const problem *p)
{
    int64_t dim = p->spec.head_dim, n_heads = p->spec.n_kv_heads;
    double *means = fixture_alloc(
        (size_t)(p->spec.n_seqs * (int64_t)p->n_blocks * n_heads * dim) * sizeof(*means) + 1);
    for (int32_t s = 0; s < p->spec.n_seqs; s++) {
        for (int64_t b = 0; b < p->kv_lens[s] / p->spec.block_size; b++) {
            for (int32_t r = 0; r < n_heads; r++) {
                double *mean = means + ((s * (int64_t)p->n_blocks + b) * n_heads + r) * dim;
                for (int64_t d = 0; d < dim; d++) mean[d] = exact_mean(p, s, b, r, d);
            }
        }
    }
    return means;
}

/* ---- means ----------------------------------------------------------------------------------- */

/* Every block: the mean where the new tokens filled it, poison elsewhere. */
static void check_means(msa_context *ctx, const problem *p, const double *exact, const int32_t *cu)
{
    msa_tensor means = new_means(p);
    run_means(ctx, p, cu, means);
    expect_padding_untouched(&means, context_label(ctx));
    for (int32_t s = 0; s < p->spec.n_seqs; s++) {
        int64_t first = msa__first_mean(&p->kv, s, p->spec.block_size);
        int64_t n_old = p->kv_lens[s] - (cu[s + 1] - cu[s]);
        for (int64_t b = 0; b * p->spec.block_size < p->kv_lens[s]; b++) {
            int64_t end = (b + 1) * p->spec.block_size;
            int filled = end <= p->kv_lens[s] && end > n_old;
            for (int32_t r = 0; r < p->spec.n_kv_heads; r++) {
                const float *mean = msa__mean_at(&means, &p->kv, first, s, b, r);
                const double *want =
                    exact +
                    ((s * (int64_t)p->n_blocks + b) * p->spec.n_kv_heads + r) * p->spec.head_dim;
                for (int32_t d = 0; d < p->spec.head_dim; d++) {
                    double x = (double)mean[d];
                    if (filled ? fabs(x - want[d]) <= 2e-6 : isnan(x)) continue;
                    fail_msg("%s %s: mean[%d][%d][%d][%d] = %g, exactly %g%s", context_label(ctx),
                             p->spec.name, s, (int)b, r, d, x, want[d], filled ? "" : ", not new");
                }
            }
        }
    }
}

/* ---- rows ------------------------------------------------------------------------------------ */

/* A row is well formed, and no block left out has a gate above that of a kept one (or equal to it
 * with a lower id): exactly where sums are exact, else by more than rounding. */
static void check_row(const char *label, const problem *p, const double *means, int64_t token,
                      int32_t n_heads, int32_t r, int32_t n_pages, int32_t topk, const int32_t *row)
{
    int64_t local_page = p->position[token] / p->spec.block_size, current = local_page / n_pages;
    int64_t n_kept = current + 1 < topk ? current + 1 : topk, n = 0, previous = -1;
    double worst = HUGE_VAL, margin = p->spec.fill == FILL_NORMAL ? 1e-4 : 0;
    int64_t worst_block = -1;
    uint8_t kept[512] = {0};
    for (int64_t k = 0; k < n_kept; k++) {
        int64_t block = row[n] / n_pages;
        if (block <= previous || block > current) fail_msg("%s: block %d", label, (int)block);
        for (int64_t page = block * n_pages; page < (block + 1) * n_pages && page <= local_page;) {
            assert_int_equal(row[n++], page++);
        }
        previous = block;
        kept[block] = 1;
        if (block == current) continue;
        double gate = exact_gate(p, means, token, n_heads, r, block, n_pages);
        if (gate <= worst) worst = gate, worst_block = block;
    }
    assert_int_equal(previous, current); /* the current one is kept, last */
    while (n < (int64_t)topk * n_pages) assert_int_equal(row[n++], -1);
    if (topk == 1) return;
    for (int64_t b = 0; b < current; b++) {
        if (kept[b]) continue;
        double gate = exact_gate(p, means, token, n_heads, r, b, n_pages);
        double room = margin * fmax(1, fabs(worst));
        if (gate < worst + room || (gate == worst && b > worst_block)) continue;
        fail_msg("%s: token %d row %d keeps block %d (gate %g) before %d (gate %g)", label,
                 (int)token, r, (int)worst_block, worst, (int)b, gate);
    }
}

static void check_rows(msa_context *ctx, const problem *p, const double *exact, msa_tensor means,
                       int32_t n_pages, int32_t topk)
{
    char label[128];
    int32_t heads[2] = {p->spec.n_q_heads, p->spec.n_kv_heads};
    for (int i = 0; i < 2; i++) {
        int32_t *rows = run_moba(ctx, p, means, n_pages, topk, heads[i]);
        snprintf(label, sizeof(label), "%s %s m %d K %d %d heads", context_label(ctx), p->spec.name,
                 n_pages, topk, heads[i]);
        for (int64_t t = 0; t < p->n_tokens; t++) {
            for (int32_t r = 0; r < heads[i]; r++) {
                check_row(label, p, exact, t, heads[i], r, n_pages, topk,
                          rows + (t * heads[i] + r) * topk * n_pages);
            }
        }
    }
}

static void check_case(const problem_spec *spec, void *arg)
{
    (void)arg;
    problem *p = problem_create(spec, 41);
    double *exact = exact_means(p);
    msa_context *ctx;
    for (int32_t c = 0; (ctx = attention_context(c)) != NULL; c++) {
        msa_tensor means = new_means(p);
        check_means(ctx, p, exact, p->cu_q);
        check_means(ctx, p, exact, p->cu_k);
        run_means(ctx, p, p->cu_k, means);
        check_rows(ctx, p, exact, means, 1, spec->topk);
        check_rows(ctx, p, exact, means, 2, 3);
        if (spec->n_seqs == 3) check_rows(ctx, p, exact, means, 3, 1);
    }
    problem_free(p);
    fixture_teardown(NULL);
}

static void test_means_and_rows(void **state)
{
    (void)state;
    for_each_case(check_case, NULL);
}

/* ---- attention ------------------------------------------------------------------------------- */

/* Heads h, G + h, 2 G + h, … of a [T, Hq, …] tensor. */
static msa_tensor every_group(msa_tensor t, int64_t h, int64_t group)
{
    t.data = (unsigned char *)t.data + h * t.stride[1] * (int64_t)msa_dtype_bytes(t.dtype);
    t.shape[1] /= group;
    t.stride[1] *= group;
    return t;
}

static void attend(msa_context *ctx, const problem *p, msa_tensor q, msa_tensor blocks,
                   msa_tensor out, msa_tensor lse)
{
    msa_attend_args args = attend_args(p, &blocks);
    args.q = q;
    args.out = out;
    args.lse = lse;
    msa_plan plan;
    msa_plan_init(&plan);
    EXPECT_OK(msa_attend_plan(ctx, &args, &plan));
    EXPECT_OK(call_attend(ctx, &plan, &args, fixture_workspace(plan.workspace_bytes),
                          plan.workspace_bytes));
}

typedef struct {
    float *out; /* [T, Hq, D] */
    float *lse; /* [T, Hq] */
} heads_result;

static heads_result attend_heads(msa_context *ctx, const problem *p, int32_t *rows, int32_t n_ids)
{
    int64_t group = p->spec.n_q_heads / p->spec.n_kv_heads;
    msa_tensor blocks =
        msa_tensor_make(rows, MSA_DTYPE_I32, 3, p->n_tokens, p->spec.n_q_heads, n_ids, 0);
    msa_tensor out =
        tensor_new(p->spec.q_dtype, 3, p->n_tokens, p->spec.n_q_heads, p->spec.head_dim, 0);
    heads_result r;
    r.lse = fixture_alloc((size_t)(p->n_tokens * p->spec.n_q_heads) * 4);
    for (int64_t h = 0; h < group; h++) {
        msa_tensor lse = tensor_new(MSA_DTYPE_F32, 2, p->n_tokens, p->spec.n_kv_heads, 1, 0);
        attend(ctx, p, every_group(p->q_tensor, h, group), every_group(blocks, h, group),
               every_group(out, h, group), lse);
        for (int64_t i = 0; i < p->n_tokens * p->spec.n_kv_heads; i++) {
            r.lse[i * group + h] = ((const float *)lse.data)[i];
        }
    }
    r.out = fixture_alloc((size_t)(p->n_tokens * p->spec.n_q_heads * p->spec.head_dim) * 4);
    read_tensor(&out, r.out);
    return r;
}

/* Row by row what a call gives in which all heads of the group have the head's rows. */
static void check_heads_are_alone(msa_context *ctx, const problem *p, const int32_t *rows,
                                  int32_t n_ids, const heads_result *got)
{
    int64_t n_q = p->spec.n_q_heads, n_kv = p->spec.n_kv_heads, group = n_q / n_kv;
    int64_t dim = p->spec.head_dim;
    problem one = *p;
    one.spec.topk = n_ids;
    int32_t *shared = fixture_alloc((size_t)(p->n_tokens * n_kv * n_ids) * sizeof(*shared));
    for (int64_t h = 0; h < group; h++) {
        for (int64_t t = 0; t < p->n_tokens; t++) {
            for (int64_t r = 0; r < n_kv; r++) {
                memcpy(shared + (t * n_kv + r) * n_ids, rows + (t * n_q + r * group + h) * n_ids,
                       (size_t)n_ids * sizeof(*shared));
            }
        }
        results want;
        run_attend(ctx, &one, shared, &want);
        for (int64_t t = 0; t < p->n_tokens; t++) {
            for (int64_t r = 0; r < n_kv; r++) {
                int64_t at = t * n_q + r * group + h;
                expect_same_floats(context_label(ctx), got->out + at * dim, want.out + at * dim,
                                   dim);
                expect_same_floats(context_label(ctx), got->lse + at, want.lse + at, 1);
            }
        }
        results_free(&want);
    }
}

/* K of all blocks is dense attention; K = 1 is attention inside the current block. */
static void check_attention_of(msa_context *ctx, const problem_spec *spec)
{
    problem *p = problem_create(spec, 42);
    msa_tensor means = new_means(p);
    run_means(ctx, p, p->cu_k, means);
    int32_t *rows = run_moba(ctx, p, means, 2, 2, spec->n_q_heads);
    heads_result got = attend_heads(ctx, p, rows, 4);
    check_heads_are_alone(ctx, p, rows, 4, &got);

    oracle_output dense = oracle_dense(p, 0, 0, NULL);
    rows = run_moba(ctx, p, means, 1, 64, spec->n_q_heads);
    got = attend_heads(ctx, p, rows, 64);
    expect_attention("MoBA with K >= N", p, &dense, &(results){.out = got.out, .lse = got.lse});
    oracle_output_free(&dense);

    rows = run_moba(ctx, p, means, 1, 1, spec->n_kv_heads);
    for (int64_t i = 0; i < p->n_tokens * spec->n_kv_heads; i++) {
        assert_int_equal(rows[i], p->position[i / spec->n_kv_heads] / spec->block_size);
    }
    problem_free(p);
}

static void test_attention(void **state)
{
    (void)state;
    static const char *const names[] = {"typical", "groups-of-32", "t-2-below-s"};
    msa_context *ctx;
    for (int32_t c = 0; (ctx = attention_context(c)) != NULL; c++) {
        for (size_t i = 0; i < 3; i++) {
            problem_spec spec = case_named(names[i]);
            spec.q_dtype = i == 1 ? MSA_DTYPE_BF16 : MSA_DTYPE_F32;
            spec.cache_dtype = spec.q_dtype;
            spec.paged = i != 2;
            check_attention_of(ctx, &spec);
        }
    }
}

/* ---- arguments ------------------------------------------------------------------------------- */

static void test_arguments_are_checked(void **state)
{
    (void)state;
    problem_spec spec = case_named("typical");
    problem *p = problem_create(&spec, 1);
    msa_context *ctx = context_at(0);
    msa_tensor means = new_means(p);
    msa_moba_select_args good = select_args_of(p, means, 2, 3), args;
    msa_plan plan;
    msa_plan_init(&plan);
    good.blocks = tensor_new(MSA_DTYPE_I32, 3, p->n_tokens, 4, 6, 0);
    EXPECT_OK(msa_moba_select_plan(ctx, &good, &plan));
    size_t bytes = plan.workspace_bytes;
    void *workspace = fixture_workspace(bytes);
    EXPECT_OK(call_moba_select(ctx, &plan, &good, workspace, bytes));
    args = good, args.topk = 33;
    EXPECT_FAIL(MSA_EINVAL, "moba_select: topk = 33, must be 1..32",
                msa_moba_select_plan(ctx, &args, &plan));
    args = good, args.n_pages = 65;
    EXPECT_FAIL(MSA_EINVAL, "n_pages = 65", msa_moba_select_plan(ctx, &args, &plan));
    args = good, args.blocks = tensor_new(MSA_DTYPE_I32, 3, p->n_tokens, 3, 6, 0);
    EXPECT_FAIL(MSA_EINVAL, "blocks.shape[1] = 3, must be q's Hq = 4 or Hkv = 2",
                msa_moba_select(ctx, &plan, &args, workspace, bytes));
    args = good, args.blocks = tensor_new(MSA_DTYPE_I32, 3, p->n_tokens, 4, 5, 0);
    EXPECT_FAIL(MSA_EINVAL, "blocks.shape[2] = 5, must equal topk * n_pages = 6",
                msa_moba_select(ctx, &plan, &args, workspace, bytes));
    args = good, args.means.shape[0]--;
    EXPECT_FAIL(MSA_EINVAL, "means.shape[0]", msa_moba_select(ctx, &plan, &args, workspace, bytes));
    msa_block_means_args means_args;
    msa_block_means_args_init(&means_args);
    means_args.kv = p->kv;
    means_args.cu_seqlens_q = p->cu_q;
    means_args.n_tokens = p->n_tokens + 1;
    means_args.block_size = spec.block_size;
    means_args.means = means;
    if (!msa_context_uses_device_memory(ctx)) {
        EXPECT_FAIL(MSA_EINVAL, "block_means: cu_seqlens_q", msa_block_means(ctx, &means_args));
    }
    problem_free(p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_means_and_rows, fixture_teardown),
        cmocka_unit_test_teardown(test_attention, fixture_teardown),
        cmocka_unit_test_teardown(test_arguments_are_checked, fixture_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
