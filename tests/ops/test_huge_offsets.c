/* A cache whose last pages lie more than 2^31 elements behind its first, in device memory: select,
 * attend and dense attention give the bits they give on the same pages at the front. */
#include "harness/cmocka_all.h"

#include "ops/cases.h"
#include "ops/layer_fixture.h"
#include "ops/oracle.h"

#include <stdio.h>
#include <stdlib.h>

enum { N_LANES = 3, MAX_PARTS = 24 };

static msa_context *ctx;
static void *parts[MAX_PARTS];
static size_t part_bytes[MAX_PARTS];
static int n_parts;

static void *device_part(const void *host, size_t bytes)
{
    assert_in_range(n_parts, 0, MAX_PARTS - 1);
    void **part = &parts[n_parts];
    part_bytes[n_parts++] = bytes;
    EXPECT_OK(msa_memory_alloc(ctx, bytes, part));
    if (host) EXPECT_OK(msa_memory_upload(ctx, *part, host, bytes));
    return *part;
}

static void free_parts(void)
{
    while (n_parts > 0) {
        n_parts--;
        msa_memory_free(ctx, parts[n_parts], part_bytes[n_parts]);
    }
}

static msa_tensor device_tensor(const msa_tensor *t)
{
    msa_tensor copy = *t;
    size_t bytes = (size_t)(t->shape[0] * t->stride[0]) * msa_dtype_bytes(t->dtype);
    copy.data = device_part(t->data, bytes);
    return copy;
}

/* The lane with `shift` pages before its first; pages as far apart as those of the widest lane. */
static msa_tensor shifted_lane(const msa_tensor *lane, int64_t shift, int64_t page_stride)
{
    msa_tensor t = *lane;
    size_t element = msa_dtype_bytes(t.dtype);
    t.shape[0] += shift;
    t.stride[0] = page_stride;
    t.data = device_part(NULL, (size_t)(t.shape[0] * page_stride) * element);
    for (int64_t page = 0; page < lane->shape[0]; page++) {
        const char *from = (const char *)lane->data + (size_t)(page * lane->stride[0]) * element;
        char *to = (char *)t.data + (size_t)((page + shift) * page_stride) * element;
        EXPECT_OK(msa_memory_upload(ctx, to, from, (size_t)lane->stride[0] * element));
    }
    return t;
}

static msa_kv_view shifted_view(const problem *p)
{
    int64_t page_stride = p->kv.k.stride[0], shift = ((int64_t)1 << 31) / page_stride + 1;
    size_t n_entries = (size_t)p->spec.n_seqs * (size_t)p->n_blocks;
    msa_kv_view kv = p->kv;
    kv.k = shifted_lane(&p->kv.k, shift, page_stride);
    kv.v = shifted_lane(&p->kv.v, shift, page_stride);
    kv.k_index = shifted_lane(&p->kv.k_index, shift, page_stride);
    int32_t *table = malloc(n_entries * sizeof(*table));
    assert_non_null(table);
    for (size_t i = 0; i < n_entries; i++) table[i] = p->page_table[i] + (int32_t)shift;
    kv.page_table = device_part(table, n_entries * sizeof(*table));
    kv.kv_lens = device_part(p->kv_lens, (size_t)p->spec.n_seqs * sizeof(int32_t));
    free(table);
    return kv;
}

static void *workspace_of(const msa_plan *plan)
{
    return device_part(NULL, plan->workspace_bytes);
}

static void expect_output(const char *what, const msa_tensor *t, const float *want)
{
    int64_t n = t->shape[0] * t->shape[1] * t->shape[2];
    msa_tensor host = poisoned_tensor(t->dtype, 3, t->shape[0], t->shape[1], t->shape[2], 1, 0);
    float *got = malloc((size_t)n * sizeof(*got));
    assert_non_null(got);
    EXPECT_OK(msa_memory_download(ctx, host.data, t->data, (size_t)n * msa_dtype_bytes(t->dtype)));
    read_tensor(&host, got);
    if (t->dtype == MSA_DTYPE_I32) {
        expect_same_ids(what, (const int32_t *)(const void *)got,
                        (const int32_t *)(const void *)want, n);
    } else {
        expect_same_floats(what, got, want, n);
    }
    free(got);
    free(host.data);
}

static void check_shape(const char *name, msa_dtype cache_dtype)
{
    problem_spec spec = case_named(name);
    spec.q_dtype = MSA_DTYPE_BF16;
    spec.cache_dtype = cache_dtype;
    problem *p = problem_create(&spec, 71);
    results selected, sparse, dense;
    run_select(ctx, p, &selected);
    run_attend(ctx, p, selected.blocks, &sparse);
    run_dense(ctx, p, NULL, &dense);

    msa_kv_view kv = shifted_view(p);
    const int32_t *cu = device_part(p->cu_q, (size_t)(spec.n_seqs + 1) * sizeof(int32_t));
    msa_tensor rows =
        msa_tensor_make(NULL, MSA_DTYPE_I32, 3, p->n_tokens, spec.n_kv_heads, spec.topk, 1);
    msa_tensor out =
        msa_tensor_make(NULL, spec.q_dtype, 3, p->n_tokens, spec.n_q_heads, spec.head_dim, 1);
    rows.data = device_part(NULL, (size_t)(rows.shape[0] * rows.stride[0]) * sizeof(int32_t));
    out.data = device_part(NULL, (size_t)(out.shape[0] * out.stride[0]) * sizeof(uint16_t));
    msa_plan plan;
    msa_plan_init(&plan);

    msa_select_args select = select_args(p);
    select.q_index = device_tensor(&p->q_index_tensor);
    select.kv = kv;
    select.kv.k = select.kv.v = (msa_tensor){0};
    select.cu_seqlens_q = cu;
    select.blocks = rows;
    EXPECT_OK(msa_select_plan(ctx, &select, &plan));
    EXPECT_OK(msa_select(ctx, &plan, &select, workspace_of(&plan), plan.workspace_bytes));
    expect_output("selected rows", &rows, (const float *)(const void *)selected.blocks);

    msa_attend_args attend = attend_args(p, &rows);
    attend.q = device_tensor(&p->q_tensor);
    attend.kv = kv;
    attend.kv.k_index = (msa_tensor){0};
    attend.cu_seqlens_q = cu;
    attend.out = out;
    EXPECT_OK(msa_attend_plan(ctx, &attend, &plan));
    EXPECT_OK(msa_attend(ctx, &plan, &attend, workspace_of(&plan), plan.workspace_bytes));
    expect_output("attend", &out, sparse.out);

    msa_dense_attend_args full = dense_args(p);
    full.q = attend.q;
    full.kv = attend.kv;
    full.cu_seqlens_q = cu;
    full.out = out;
    EXPECT_OK(msa_dense_attend_plan(ctx, &full, &plan));
    EXPECT_OK(msa_dense_attend(ctx, &plan, &full, workspace_of(&plan), plan.workspace_bytes));
    expect_output("dense attend", &out, dense.out);

    free_parts();
    results_free(&selected);
    results_free(&sparse);
    results_free(&dense);
    problem_free(p);
}

static void test_pages_beyond_two_to_the_31(void **state)
{
    (void)state;
    ctx = context_at(0);
    check_shape("chunk", MSA_DTYPE_BF16);
    check_shape("drafts", MSA_DTYPE_BF16);
    check_shape("drafts", MSA_DTYPE_F8_E4M3);
    check_shape("heads-of-64", MSA_DTYPE_BF16);
    check_shape("typical", MSA_DTYPE_BF16); /* blocks of 16: no fast path */
}

int main(void)
{
    if (!test_backend()) {
        printf("skipped: a backend with device memory is needed\n");
        return 77;
    }
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_pages_beyond_two_to_the_31)};
    return cmocka_run_group_tests(tests, NULL, fixture_teardown);
}
