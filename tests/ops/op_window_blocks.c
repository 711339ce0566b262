/* window_blocks: the rows of (W1), which are those of the selection rule with every block forced.
 */
#include "ops/calls.h"
#include "ops/layer_fixture.h"

typedef struct {
    int32_t block_size, topk, n_init;
    int64_t pad;
} window_case;

static const window_case cases[] = {{16, 4, 1, 0}, {16, 4, 0, 3},   {128, 16, 1, 0},
                                    {32, 1, 0, 1}, {64, 64, 63, 0}, {256, 2, 1, 5}};

static const int32_t positions[] = {0, 1, 15, 16, 63, 64, 100, 1023, 1024, 100000, 1048575};
#define N_TOKENS (sizeof(positions) / sizeof(positions[0]))

static int is_kept(const window_case *c, int64_t position, int64_t block)
{
    int64_t local = position / c->block_size;
    return block <= local && (block < c->n_init || block > local - (c->topk - c->n_init));
}

static void check_rows(msa_context *ctx, const window_case *c)
{
    msa_window_blocks_args args;
    msa_window_blocks_args_init(&args);
    args.positions = positions;
    args.block_size = c->block_size;
    args.n_init = c->n_init;
    args.blocks = tensor_new(MSA_DTYPE_I32, 3, N_TOKENS, 3, c->topk, c->pad);
    EXPECT_OK(call_window_blocks(ctx, &args));
    expect_padding_untouched(&args.blocks, context_label(ctx));
    for (int64_t i = 0; i < (int64_t)N_TOKENS; i++) {
        for (int64_t r = 0; r < 3; r++) {
            const int32_t *row = (const int32_t *)args.blocks.data + i * args.blocks.stride[0] +
                                 r * args.blocks.stride[1];
            int32_t n = 0;
            for (int64_t b = 0; b <= positions[i] / c->block_size; b++) {
                if (is_kept(c, positions[i], b)) assert_int_equal(row[n++], b);
            }
            while (n < c->topk) assert_int_equal(row[n++], -1);
        }
    }
}

static void test_rows(void **state)
{
    (void)state;
    for (int32_t i = 0; context_at(i); i++) {
        for (size_t c = 0; c < sizeof(cases) / sizeof(cases[0]); c++) {
            check_rows(context_at(i), &cases[c]);
        }
    }
}

static void test_arguments_are_checked(void **state)
{
    (void)state;
    msa_context *ctx = context_at(0);
    msa_window_blocks_args good, args;
    int32_t negative = -1;
    msa_window_blocks_args_init(&good);
    good.positions = positions;
    good.n_init = 1;
    good.blocks = tensor_new(MSA_DTYPE_I32, 3, 1, 2, 4, 0);
    EXPECT_OK(call_window_blocks(ctx, &good));
    args = good, args.block_size = 48;
    EXPECT_FAIL(MSA_EINVAL, "window_blocks: block_size = 48", msa_window_blocks(ctx, &args));
    args = good, args.n_init = 4;
    EXPECT_FAIL(MSA_EINVAL, "n_init = 4, must be 0..3", msa_window_blocks(ctx, &args));
    args = good, args.positions = NULL;
    EXPECT_FAIL(MSA_EINVAL, "positions = NULL", msa_window_blocks(ctx, &args));
    if (!msa_context_uses_device_memory(ctx)) {
        args = good, args.positions = &negative;
        EXPECT_FAIL(MSA_EINVAL, "positions[0] = -1", msa_window_blocks(ctx, &args));
    }
    args = good, args.blocks.dtype = MSA_DTYPE_F32;
    EXPECT_FAIL(MSA_EINVAL, "blocks.dtype", msa_window_blocks(ctx, &args));
    args = good, args.blocks.shape[0] = 0, args.positions = NULL;
    EXPECT_OK(msa_window_blocks(ctx, &args));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_rows, fixture_teardown),
        cmocka_unit_test_teardown(test_arguments_are_checked, fixture_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
