/* embed_backward: rows added up token by token, exactly, in ascending order. */
#include "ops/layer_gradient.h"

#include <stdio.h>

static msa_status run(msa_context *ctx, const msa_embed_backward_args *args)
{
    msa_plan plan = {.struct_size = sizeof(plan)};
    msa_status status = msa_embed_backward_plan(ctx, args, &plan);
    if (status != MSA_OK) return status;
    void *workspace = fixture_workspace(plan.workspace_bytes);
    return call_embed_backward(ctx, &plan, args, workspace, plan.workspace_bytes);
}

static msa_embed_backward_args new_args(int64_t n_tokens, int64_t vocab, int64_t n, int64_t pad,
                                        msa_dtype dtype)
{
    msa_embed_backward_args args;
    msa_embed_backward_args_init(&args);
    int32_t *ids = fixture_alloc(sizeof(*ids) * (size_t)n_tokens);
    for (int64_t t = 0; t < n_tokens; t++) {
        ids[t] =
            (int32_t)(test_uniform(3, (uint64_t)t) * test_uniform(4, (uint64_t)t) * (double)vocab);
    }
    args.ids = ids;
    args.d_out = tensor_new(dtype, 2, n_tokens, n, 1, pad);
    args.d_table = tensor_new(MSA_DTYPE_F32, 2, vocab, n, 1, pad);
    tensor_fill(&args.d_out, 1, 1);
    tensor_fill(&args.d_table, 2, 1);
    return args;
}

/* The sums in f32, in the order the contract names. */
static msa_tensor expected_table(const msa_embed_backward_args *args)
{
    msa_tensor table = tensor_clone(&args->d_table);
    for (int64_t t = 0; t < args->d_out.shape[0]; t++) {
        for (int64_t i = 0; i < args->d_out.shape[1]; i++) {
            float sum = (float)tensor_at(&table, args->ids[t], i, 0);
            sum += (float)tensor_at(&args->d_out, t, i, 0);
            tensor_set(&table, args->ids[t], i, 0, (double)sum);
        }
    }
    return table;
}

static void test_rows_are_added_in_order(void **state)
{
    static const int64_t shapes[][4] = {{1, 1, 1, 0}, {50, 7, 37, 3}, {300, 40, 130, 0}};
    for (int d = 0; d < 3; d++) {
        for (int n = 0; n < 3; n++) {
            msa_embed_backward_args args =
                new_args(shapes[n][0], shapes[n][1], shapes[n][2], shapes[n][3], float_dtypes[d]);
            msa_tensor expected = expected_table(&args), start = args.d_table;
            for (int32_t i = 0; context_at(i); i++) {
                args.d_table = tensor_clone(&start);
                EXPECT_OK(run(context_at(i), &args));
                expect_same_bytes(&args.d_table, &expected, context_label(context_at(i)));
            }
        }
        fixture_teardown(state);
    }
}

static void test_wrong_arguments_are_named(void **state)
{
    (void)state;
    msa_context *ctx = context_at(0);
    msa_embed_backward_args good = new_args(4, 6, 8, 0, MSA_DTYPE_BF16), bad;
    int32_t ids[4] = {0, 5, 2, 2};
    good.ids = ids;
    EXPECT_OK(run(ctx, &good));
#define EXPECT_BAD(text, change)                                                                   \
    do {                                                                                           \
        bad = good;                                                                                \
        change;                                                                                    \
        EXPECT_FAIL(MSA_EINVAL, "embed_backward: " text, run(ctx, &bad));                          \
    } while (0)
    EXPECT_BAD("d_table.dtype = 1 (bf16), must be f32", bad.d_table.dtype = MSA_DTYPE_BF16);
    EXPECT_BAD("d_table.shape[0] = 0, must be 1..", bad.d_table.shape[0] = 0);
    EXPECT_BAD("d_table.stride[0] = 4, must keep elements apart", bad.d_table.stride[0] = 4);
    EXPECT_BAD("d_out.dtype", bad.d_out.dtype = MSA_DTYPE_I64);
    EXPECT_BAD("d_out.shape[1] = 7, must equal d_table's H = 8", bad.d_out.shape[1] = 7);
    EXPECT_BAD("d_out = NULL", bad.d_out.data = NULL);
    EXPECT_BAD("ids = NULL", bad.ids = NULL);
    ids[3] = 6;
    if (!msa_context_uses_device_memory(ctx)) {
        EXPECT_BAD("ids[3] = 6, must be 0..5 (the table)", (void)0);
    }
#undef EXPECT_BAD
    good.d_out.shape[0] = 0;
    EXPECT_OK(run(ctx, &good));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_rows_are_added_in_order, fixture_teardown),
        cmocka_unit_test_teardown(test_wrong_arguments_are_named, fixture_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
