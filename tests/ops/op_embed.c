/* embed: rows of a table, exactly, for every pair of dtypes. */
#include "ops/layer_fixture.h"

#include <stdio.h>

static void check_case(int64_t n_tokens, int64_t vocab, int64_t width, int64_t pad,
                       msa_dtype table_dtype, msa_dtype out_dtype)
{
    char what[128];
    msa_embed_args args;
    msa_embed_args_init(&args);
    args.table = tensor_new(table_dtype, 2, vocab, width, 1, pad);
    tensor_fill(&args.table, 1, 3);
    int32_t *ids = fixture_alloc(sizeof(*ids) * (size_t)n_tokens);
    for (int64_t t = 0; t < n_tokens; t++) {
        ids[t] = (int32_t)(test_uniform(2, (uint64_t)t) * (double)vocab);
    }
    ids[0] = (int32_t)vocab - 1;
    args.ids = ids;
    for (int32_t i = 0; context_at(i); i++) {
        args.out = tensor_new(out_dtype, 2, n_tokens, width, 1, pad);
        snprintf(what, sizeof(what), "%s %s -> %s", context_label(context_at(i)),
                 msa_dtype_name(table_dtype), msa_dtype_name(out_dtype));
        EXPECT_OK(call_embed(context_at(i), &args));
        for (int64_t t = 0; t < n_tokens; t++) {
            for (int64_t j = 0; j < width; j++) {
                double expected = rounded(out_dtype, tensor_at(&args.table, ids[t], j, 0));
                if (tensor_at(&args.out, t, j, 0) != expected) {
                    fail_msg("%s: row %lld element %lld differs", what, (long long)t, (long long)j);
                }
            }
        }
        expect_padding_untouched(&args.out, what);
    }
}

static void test_rows_are_exact(void **state)
{
    for (int combo = 0; combo < 9; combo++) {
        msa_dtype table = float_dtypes[combo % 3], out = float_dtypes[combo / 3];
        check_case(1, 1, 1, 0, table, out);
        check_case(5, 40, 37, 3, table, out);
        check_case(2, 7, 1100, 1, table, out);
        check_case(90, 300, 512, 0, table, out);
        fixture_teardown(state);
    }
}

static void test_wrong_arguments_are_named(void **state)
{
    (void)state;
    msa_context *ctx = context_at(0);
    int32_t ids[3] = {0, 9, 4};
    msa_embed_args good, bad;
    msa_embed_args_init(&good);
    good.table = tensor_new(MSA_DTYPE_BF16, 2, 10, 8, 1, 0);
    tensor_fill(&good.table, 1, 1);
    good.ids = ids;
    good.out = tensor_new(MSA_DTYPE_F32, 2, 3, 8, 1, 0);
    EXPECT_OK(call_embed(ctx, &good));
#define EXPECT_BAD(text, change)                                                                   \
    do {                                                                                           \
        bad = good;                                                                                \
        change;                                                                                    \
        EXPECT_FAIL(MSA_EINVAL, text, call_embed(ctx, &bad));                                      \
    } while (0)
    EXPECT_BAD("embed: table.dtype = 3 (fp8_e4m3)", bad.table.dtype = MSA_DTYPE_F8_E4M3);
    EXPECT_BAD("embed: table.shape[0] = 0, must be 1..", bad.table.shape[0] = 0);
    EXPECT_BAD("embed: table.shape[1] = 0, must be 1..", bad.table.shape[1] = 0);
    EXPECT_BAD("embed: table = NULL", bad.table.data = NULL);
    EXPECT_BAD("embed: out.shape[1] = 7, must equal table's H = 8", bad.out.shape[1] = 7);
    EXPECT_BAD("embed: out.n_dims = 1, must be 2", bad.out.n_dims = 1);
    EXPECT_BAD("embed: ids = NULL", bad.ids = NULL);
    for (int32_t id = -1; id <= 10 && !msa_context_uses_device_memory(ctx); id += 11) {
        ids[1] = id;
        EXPECT_BAD(id < 0 ? "embed: ids[1] = -1, must be 0..9 (the table)"
                          : "embed: ids[1] = 10, must be 0..9 (the table)",
                   (void)0);
    }
#undef EXPECT_BAD
    good.out.shape[0] = 0;
    good.out.data = NULL;
    good.ids = NULL;
    EXPECT_OK(call_embed(ctx, &good));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_rows_are_exact, fixture_teardown),
        cmocka_unit_test_teardown(test_wrong_arguments_are_named, fixture_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
