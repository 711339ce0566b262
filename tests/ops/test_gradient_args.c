/* Every check of the gradients of attention: one wrong argument at a time, the code, the message,
 * and outputs that nobody touched. */
#include "harness/cmocka_all.h"

#include "ops/gradient_run.h"
#include "ops/layer_fixture.h"

#include <math.h>
#include <stdlib.h>

enum { TOKENS = 6, Q_HEADS = 4, KV_HEADS = 2, DIM = 32, INDEX_DIM = 16, BLOCK = 16, TOPK = 3 };
enum { KEYS = 78, CAPACITY = KEYS / BLOCK + 3 };

static msa_context *ctx;
static problem *p;

/* Copies that a test may spoil. */
static int32_t cu_q[4], cu_k[4], lens[3], rows[TOKENS * KV_HEADS * TOPK];
static int32_t offsets[KV_HEADS * (CAPACITY + 1)], queries[KV_HEADS * TOKENS * TOPK];
static float out[TOKENS * Q_HEADS * DIM], lse[TOKENS * Q_HEADS], sink[Q_HEADS];
static unsigned char workspace[1 << 20] __attribute__((aligned(64)));

/* Outputs of all operators. */
static unsigned char outputs[4][KEYS * Q_HEADS * DIM * sizeof(float)] __attribute__((aligned(64)));

static int set_up(void **state)
{
    (void)state;
    problem_spec spec = {.name = "args",
                         .n_seqs = 3,
                         .n_lens = 3,
                         .q_lens = {3, 1, 2},
                         .kv_lens = {40, 33, 2},
                         .n_q_heads = Q_HEADS,
                         .n_kv_heads = KV_HEADS,
                         .head_dim = DIM,
                         .index_dim = INDEX_DIM,
                         .block_size = BLOCK,
                         .topk = TOPK,
                         .n_local = 1};
    ctx = gradient_context(0);
    p = problem_create(&spec, 95);
    assert_int_equal(p->kv.k.shape[0], KEYS);
    return 0;
}

static int tear_down(void **state)
{
    problem_free(p);
    return fixture_teardown(state);
}

static msa_tensor blocks_tensor(void)
{
    return msa_tensor_make(rows, MSA_DTYPE_I32, 3, TOKENS, KV_HEADS, TOPK, 1);
}

static msa_reverse_index index_tensors(void)
{
    msa_reverse_index index;
    index.offsets = msa_tensor_make(offsets, MSA_DTYPE_I32, 2, KV_HEADS, CAPACITY + 1, 1, 1);
    index.queries = msa_tensor_make(queries, MSA_DTYPE_I32, 2, KV_HEADS, TOKENS * TOPK, 1, 1);
    return index;
}

static msa_kv_view packed_view(void)
{
    msa_kv_view kv = p->kv;
    kv.cu_seqlens_k = cu_k;
    kv.kv_lens = lens;
    return kv;
}

static msa_tensor output(int n, int64_t n_rows, int64_t heads, int64_t dim)
{
    return msa_tensor_make(outputs[n], MSA_DTYPE_F32, 3, n_rows, heads, dim, 1);
}

/* Every token selects the blocks up to its own. */
static void reset_arrays(void)
{
    memcpy(cu_q, p->cu_q, sizeof(cu_q));
    memcpy(cu_k, p->cu_k, sizeof(cu_k));
    memcpy(lens, p->kv_lens, sizeof(lens));
    for (int32_t row = 0; row < TOKENS * KV_HEADS; row++) {
        int32_t local = p->position[row / KV_HEADS] / BLOCK;
        for (int32_t k = 0; k < TOPK; k++) rows[row * TOPK + k] = k <= local ? k : -1;
    }
    msa_tensor blocks = blocks_tensor();
    msa_reverse_index index = run_reverse_index(ctx, p, &blocks);
    for (int32_t r = 0; r < KV_HEADS; r++) {
        memcpy(offsets + r * (CAPACITY + 1),
               (int32_t *)index.offsets.data + r * index.offsets.stride[0],
               (CAPACITY + 1) * sizeof(int32_t));
        memcpy(queries + r * TOKENS * TOPK,
               (int32_t *)index.queries.data + r * index.queries.stride[0],
               TOKENS * TOPK * sizeof(int32_t));
    }
    free(index.offsets.data);
    free(index.queries.data);
    memset(sink, 0, sizeof(sink));
    memset(outputs, 0x11, sizeof(outputs));
}

static void expect_outputs_untouched(void)
{
    const unsigned char *bytes = outputs[0];
    for (size_t i = 0; i < sizeof(outputs); i++) assert_int_equal(bytes[i], 0x11);
}

static msa_status run_op(const msa_plan *plan, const void *args, int32_t op)
{
    size_t bytes = sizeof(workspace);
    switch (op) {
    case 0:
        return msa_reverse_index_build(ctx, plan, args, workspace, bytes);
    case 1:
        return msa_attend_backward(ctx, plan, args, workspace, bytes);
    case 2:
        return msa_dense_attend_backward(ctx, plan, args, workspace, bytes);
    case 3:
        return msa_index_kl(ctx, plan, args, workspace, bytes);
    default:
        return msa_block_mass(ctx, plan, args, workspace, bytes);
    }
}

/* Planning and running must both refuse, or (only_run) only running: planning ignores contents. */
#define REJECTS_IN(op, number, only_run, change, text)                                             \
    do {                                                                                           \
        reset_arrays();                                                                            \
        msa_##op##_args a = valid_##op();                                                          \
        msa_plan plan_;                                                                            \
        msa_plan_init(&plan_);                                                                     \
        EXPECT_OK(msa_##op##_plan(ctx, &a, &plan_));                                               \
        change;                                                                                    \
        EXPECT_FAIL(MSA_EINVAL, text, run_op(&plan_, &a, number));                                 \
        expect_outputs_untouched();                                                                \
        if (only_run) {                                                                            \
            EXPECT_OK(msa_##op##_plan(ctx, &a, &plan_));                                           \
        } else {                                                                                   \
            EXPECT_FAIL(MSA_EINVAL, text, msa_##op##_plan(ctx, &a, &plan_));                       \
        }                                                                                          \
    } while (0)

/* Wrong contents: running alone refuses, where the host can look. */
#define REJECTS_CONTENTS_IN(op, number, change, text)                                              \
    do {                                                                                           \
        if (!msa_context_uses_device_memory(ctx)) REJECTS_IN(op, number, 1, change, text);         \
    } while (0)

/* ---- reverse index --------------------------------------------------------------------------- */

static msa_reverse_index_args valid_reverse_index(void)
{
    msa_reverse_index_args args;
    msa_reverse_index_args_init(&args);
    args.blocks = blocks_tensor();
    args.kv = packed_view();
    args.kv.k = args.kv.v = args.kv.k_index = (msa_tensor){0};
    args.kv.k.shape[0] = KEYS;
    args.cu_seqlens_q = cu_q;
    args.block_size = BLOCK;
    args.index.offsets =
        msa_tensor_make(outputs[0], MSA_DTYPE_I32, 2, KV_HEADS, CAPACITY + 1, 1, 1);
    args.index.queries =
        msa_tensor_make(outputs[1], MSA_DTYPE_I32, 2, KV_HEADS, TOKENS * TOPK, 1, 1);
    return args;
}

static void test_reverse_index(void **state)
{
    (void)state;
#define REJECTS(change, text)          REJECTS_IN(reverse_index, 0, 0, change, text)
#define REJECTS_CONTENTS(change, text) REJECTS_CONTENTS_IN(reverse_index, 0, change, text)
    REJECTS(a.flags = 1, "reverse_index: args.flags = 1");
    REJECTS(a.block_size = 24, "block_size = 24");
    REJECTS(a.blocks.dtype = MSA_DTYPE_F32, "blocks.dtype = 0 (f32), must be i32");
    REJECTS(a.blocks.shape[2] = 65, "blocks.shape[2] = 65, must be 1..64");
    REJECTS(a.blocks.shape[1] = 0, "blocks.shape[1] = 0");
    REJECTS(a.blocks.shape[0] = (int64_t)1 << 30, "must give T K below 2^31");
    REJECTS(a.kv.page_table = rows, "kv.page_table is set, must be NULL");
    REJECTS(a.kv.cu_seqlens_k = NULL, "both NULL");
    REJECTS(a.kv.k.shape[0] = -1, "kv.k.shape[0] = -1");
    REJECTS(a.index.offsets.shape[1] = 4, "index.offsets.shape[1] = 4, must equal capacity + 1");
    REJECTS(a.index.offsets.shape[0] = 1, "index.offsets.shape[0] = 1, must equal Hkv = 2");
    REJECTS(a.index.queries.shape[1] = 4, "index.queries.shape[1] = 4, must equal T K = 18");
    REJECTS(a.index.queries.dtype = MSA_DTYPE_I64, "index.queries.dtype");
    REJECTS(a.index.queries.stride[0] = 3, "index.queries.stride[0] = 3, must keep elements apart");
    REJECTS_CONTENTS(cu_q[3] = 5, "cu_seqlens_q[3] = 5");
    REJECTS_CONTENTS(cu_k[3] = 79, "kv.cu_seqlens_k[3] = 79, must be at most the rows' 78");
    REJECTS_CONTENTS(lens[0] = 41, "kv.kv_lens[0] = 41");
    REJECTS_CONTENTS(rows[1] = 0, "blocks[0][0][1] = 0, must ascend");
    REJECTS_CONTENTS(rows[0] = 3, "blocks[0][0][0] = 3");
#undef REJECTS
#undef REJECTS_CONTENTS
}

/* ---- attend ---------------------------------------------------------------------------------- */

static msa_attend_backward_args valid_attend_backward(void)
{
    msa_attend_backward_args args;
    msa_attend_backward_args_init(&args);
    args.q = p->q_tensor;
    args.kv = packed_view();
    args.cu_seqlens_q = cu_q;
    args.blocks = blocks_tensor();
    args.index = index_tensors();
    args.block_size = BLOCK;
    args.out = msa_tensor_make(out, MSA_DTYPE_F32, 3, TOKENS, Q_HEADS, DIM, 1);
    args.lse = msa_tensor_make(lse, MSA_DTYPE_F32, 2, TOKENS, Q_HEADS, 1, 1);
    args.d_out = args.out;
    args.dq = output(0, TOKENS, Q_HEADS, DIM);
    args.dk = output(1, KEYS, KV_HEADS, DIM);
    args.dv = output(2, KEYS, KV_HEADS, DIM);
    return args;
}

static void test_attend_backward(void **state)
{
    (void)state;
#define REJECTS(change, text)          REJECTS_IN(attend_backward, 1, 0, change, text)
#define REJECTS_CONTENTS(change, text) REJECTS_CONTENTS_IN(attend_backward, 1, change, text)
    REJECTS(a.struct_size = 4, "attend_backward: args.struct_size = 4");
    REJECTS(a.q.dtype = MSA_DTYPE_F8_E4M3, "q.dtype = 3 (fp8_e4m3), must be f32, bf16 or f16");
    REJECTS(a.q.shape[2] = 8, "q.shape[2] = 8");
    REJECTS(a.block_size = 8, "block_size = 8");
    REJECTS(a.scale = -1, "scale = -1, must be finite and positive");
    REJECTS(a.blocks.shape[1] = 3, "q.shape[1] = 4, must be 1..32 times Hkv = 3");
    REJECTS(a.kv.k.dtype = MSA_DTYPE_F8_E4M3, "kv.k.dtype = 3 (fp8_e4m3), must be f32 or bf16");
    REJECTS(a.kv.v.dtype = MSA_DTYPE_F16, "kv.v.dtype = 2 (f16), must be f32 or bf16");
    REJECTS(a.kv.v.shape[0] = 77, "kv.v.shape[0] = 77");
    REJECTS(a.kv.page_table = rows, "kv.page_table is set, must be NULL");
    REJECTS(a.out.shape[1] = 2, "out.shape[1] = 2, must equal q's extent = 4");
    REJECTS(a.lse.dtype = MSA_DTYPE_BF16, "lse.dtype = 1 (bf16), must be f32");
    REJECTS(a.lse.shape[0] = 5, "lse.shape[0] = 5, must equal q's T = 6");
    REJECTS(a.d_out.shape[2] = 16, "d_out.shape[2] = 16, must equal q's extent = 32");
    REJECTS(a.dq.shape[0] = 5, "dq.shape[0] = 5, must equal q's extent = 6");
    REJECTS(a.dk.shape[0] = 77, "dk.shape[0] = 77, must equal k's extent = 78");
    REJECTS(a.dk.stride[0] = 32, "dk.stride[1] = 32, must keep elements apart");
    REJECTS(a.dv.dtype = MSA_DTYPE_I32, "dv.dtype = 5 (i32), must be f32, bf16 or f16");
    REJECTS(a.accumulate = 2, "accumulate = 2, must be 0..1");
    REJECTS(a.blocks.shape[2] = 2, "index.queries.shape[1] = 18, must equal T K = 12");
    REJECTS(a.index.offsets.shape[1] = 9, "index.offsets.shape[1] = 9, must equal capacity + 1");
    REJECTS_CONTENTS(a.lse.data = NULL, "lse = NULL, must be a pointer");
    REJECTS_CONTENTS(a.dv.data = NULL, "dv = NULL, must be a pointer");
    REJECTS_CONTENTS(a.index.queries.data = NULL, "index.queries = NULL");
    REJECTS_CONTENTS(rows[0] = 7, "blocks[0][0][0] = 7");
    REJECTS_CONTENTS(offsets[0] = 1, "index.offsets[0][0] = 1, must be 0..0");
    REJECTS_CONTENTS(offsets[2] = -5, "index.offsets[0][2] = -5");
    REJECTS_CONTENTS(offsets[CAPACITY] = 1000, "index.offsets[0][7] = 1000");
    REJECTS_CONTENTS(queries[1] = 0, "index.queries[0] for block 0 of sequence 0");
    REJECTS_CONTENTS(queries[0] = -1, "index.queries[0] for block 0 of sequence 0");
    REJECTS_CONTENTS(queries[0] = 5, "index.queries[0] for block 0 of sequence 0");
    REJECTS_CONTENTS(rows[2] = -1, "index.queries[0] for block 2 of sequence 0");
    REJECTS_CONTENTS(for (int c = 1; c <= CAPACITY; c++) offsets[c] = 0, "must be the 14 selected");
#undef REJECTS
#undef REJECTS_CONTENTS
}

/* ---- dense attend ---------------------------------------------------------------------------- */

static msa_dense_attend_backward_args valid_dense_attend_backward(void)
{
    msa_dense_attend_backward_args args;
    msa_dense_attend_backward_args_init(&args);
    args.q = p->q_tensor;
    args.kv = packed_view();
    args.cu_seqlens_q = cu_q;
    args.sink_logit = sink;
    args.out = msa_tensor_make(out, MSA_DTYPE_F32, 3, TOKENS, Q_HEADS, DIM, 1);
    args.lse = msa_tensor_make(lse, MSA_DTYPE_F32, 2, TOKENS, Q_HEADS, 1, 1);
    args.d_out = args.out;
    args.dq = output(0, TOKENS, Q_HEADS, DIM);
    args.dk = output(1, KEYS, KV_HEADS, DIM);
    args.dv = output(2, KEYS, KV_HEADS, DIM);
    args.d_sink_logit = msa_tensor_make(outputs[3], MSA_DTYPE_F32, 1, Q_HEADS, 1, 1, 1);
    return args;
}

static void test_dense_attend_backward(void **state)
{
    (void)state;
#define REJECTS(change, text)          REJECTS_IN(dense_attend_backward, 2, 0, change, text)
#define REJECTS_CONTENTS(change, text) REJECTS_CONTENTS_IN(dense_attend_backward, 2, change, text)
    REJECTS(a.q.shape[1] = 5, "dense_attend_backward: q.shape[1] = 5, must be 1..32 times Hkv = 2");
    REJECTS(a.kv.page_table = rows, "kv.page_table is set");
    REJECTS(a.kv.k.n_dims = 4, "kv.k.n_dims = 4, must be 3");
    REJECTS(a.scale = INFINITY, "scale = inf");
    REJECTS(a.window = -1, "window = -1");
    REJECTS(a.n_sink_tokens = 3, "n_sink_tokens = 3, must be 0 without a window");
    REJECTS(a.out.dtype = MSA_DTYPE_U8, "out.dtype = 4 (u8)");
    REJECTS(a.dk.shape[1] = 1, "dk.shape[1] = 1, must equal k's extent = 2");
    REJECTS(a.sink_logit = NULL, "d_sink_logit is present, must be absent without sink_logit");
    REJECTS(a.d_sink_logit.shape[0] = 3, "d_sink_logit.shape[0] = 3, must equal q's Hq = 4");
    REJECTS(a.d_sink_logit.dtype = MSA_DTYPE_BF16, "d_sink_logit.dtype = 1 (bf16), must be f32");
    REJECTS_CONTENTS(sink[2] = NAN, "sink_logit[2] = ");
    REJECTS_CONTENTS(cu_q[1] = 41, "cu_seqlens_q");
    REJECTS_CONTENTS(a.d_out.data = NULL, "d_out = NULL");
#undef REJECTS
#undef REJECTS_CONTENTS
}

/* ---- index branch ---------------------------------------------------------------------------- */

static msa_index_kl_args valid_index_kl(void)
{
    msa_index_kl_args args;
    msa_index_kl_args_init(&args);
    args.q = p->q_tensor;
    args.q_index = p->q_index_tensor;
    args.kv = packed_view();
    args.kv.v = (msa_tensor){0};
    args.cu_seqlens_q = cu_q;
    args.blocks = blocks_tensor();
    args.index = index_tensors();
    args.block_size = BLOCK;
    args.weight = 1;
    args.lse = msa_tensor_make(lse, MSA_DTYPE_F32, 2, TOKENS, Q_HEADS, 1, 1);
    args.index_lse = msa_tensor_make(out, MSA_DTYPE_F32, 2, TOKENS, KV_HEADS, 1, 1);
    args.loss = msa_tensor_make(outputs[0], MSA_DTYPE_F32, 2, TOKENS, KV_HEADS, 1, 1);
    args.dq_index = output(1, TOKENS, KV_HEADS, INDEX_DIM);
    args.dk_index = msa_tensor_make(outputs[2], MSA_DTYPE_F32, 2, KEYS, INDEX_DIM, 1, 1);
    return args;
}

static void test_index_kl(void **state)
{
    (void)state;
#define REJECTS(change, text)          REJECTS_IN(index_kl, 3, 0, change, text)
#define REJECTS_CONTENTS(change, text) REJECTS_CONTENTS_IN(index_kl, 3, change, text)
    REJECTS(a.q_index.shape[0] = 5, "index_kl: q_index.shape[0] = 5, must equal q's T = 6");
    REJECTS(a.q_index.shape[1] = 3, "q.shape[1] = 4, must be 1..32 times Hkv = 3");
    REJECTS(a.q_index.shape[2] = 24, "q_index.shape[2] = 24");
    REJECTS(a.kv.k_index.dtype = MSA_DTYPE_F8_E4M3, "kv.k_index.dtype = 3 (fp8_e4m3)");
    REJECTS(a.kv.k_index.shape[1] = 32, "kv.k_index.shape[1] = 32, must equal Di = 16");
    REJECTS(a.kv.k_index.shape[0] = 77, "kv.k_index.shape[0] = 77");
    REJECTS(a.kv.page_table = rows, "kv.page_table is set");
    REJECTS(a.scale = NAN, "scale = ");
    REJECTS(a.index_scale = -2, "index_scale = -2");
    REJECTS(a.weight = INFINITY, "weight = inf, must be finite");
    REJECTS(a.lse.shape[1] = 2, "lse.shape[1] = 2, must equal the heads = 4");
    REJECTS(a.index_lse.shape[1] = 1, "index_lse.shape[1] = 1");
    REJECTS(a.loss.dtype = MSA_DTYPE_F16, "loss.dtype = 2 (f16), must be f32");
    REJECTS(a.loss.shape[1] = 1, "loss.shape[1] = 1, must equal Hkv = 2");
    REJECTS(a.dq_index.shape[1] = 1, "dq_index.shape[1] = 1, must equal q_index's extent = 2");
    REJECTS(a.dk_index.shape[0] = 3, "dk_index.shape[0] = 3, must equal k_index's extent = 78");
    REJECTS(a.dk_index.shape[1] = 8, "dk_index.shape[1] = 8, must equal k_index's extent = 16");
    REJECTS((a.blocks.data = NULL, a.blocks.n_dims = 0),
            "index is present, must be absent without blocks");
    REJECTS(a.index.queries.shape[0] = 1, "index.queries.shape[0] = 1");
    REJECTS_CONTENTS(a.index_lse.data = (char *)a.index_lse.data + 1, "index_lse = ");
    REJECTS_CONTENTS(rows[1] = 0, "blocks[0][0][1] = 0");
    REJECTS_CONTENTS(queries[0] = 4, "index.queries[0] for block 0 of sequence 0");
#undef REJECTS
#undef REJECTS_CONTENTS
}

static msa_block_mass_args valid_block_mass(void)
{
    msa_block_mass_args args;
    msa_block_mass_args_init(&args);
    args.q = p->q_tensor;
    args.kv = packed_view();
    args.kv.v = (msa_tensor){0};
    args.cu_seqlens_q = cu_q;
    args.block_size = BLOCK;
    args.lse = msa_tensor_make(lse, MSA_DTYPE_F32, 2, TOKENS, Q_HEADS, 1, 1);
    args.mass = output(0, TOKENS, KV_HEADS, 3);
    return args;
}

static void test_block_mass(void **state)
{
    (void)state;
#define REJECTS(change, text)          REJECTS_IN(block_mass, 4, 0, change, text)
#define REJECTS_CONTENTS(change, text) REJECTS_CONTENTS_IN(block_mass, 4, change, text)
    REJECTS(a.q.shape[2] = 48, "block_mass: kv.k.shape[2] = 32, must equal D = 48");
    REJECTS(a.block_size = 5, "block_size = 5");
    REJECTS(a.scale = -1, "scale = -1");
    REJECTS(a.kv.k.dtype = MSA_DTYPE_F16, "kv.k.dtype = 2 (f16)");
    REJECTS(a.lse.n_dims = 3, "lse.n_dims = 3, must be 2");
    REJECTS(a.mass.dtype = MSA_DTYPE_BF16, "mass.dtype = 1 (bf16), must be f32");
    REJECTS(a.mass.shape[1] = 1, "mass.shape[1] = 1, must equal Hkv = 2");
    REJECTS_CONTENTS(a.mass = output(0, TOKENS, KV_HEADS, 2), "mass.shape[2] = 2, must be 3..");
    REJECTS_CONTENTS(lens[1] = 40, "kv.kv_lens[1] = 40");
#undef REJECTS
#undef REJECTS_CONTENTS
}

/* ---- plans ----------------------------------------------------------------------------------- */

static void test_plans_are_not_mixed_up(void **state)
{
    (void)state;
    reset_arrays();
    msa_attend_backward_args a = valid_attend_backward();
    msa_index_kl_args kl = valid_index_kl();
    msa_plan plan;
    msa_plan_init(&plan);
    EXPECT_OK(msa_index_kl_plan(ctx, &kl, &plan));
    EXPECT_FAIL(MSA_EINVAL, "(index_kl), must be", run_op(&plan, &a, 1));
    EXPECT_OK(msa_attend_backward_plan(ctx, &a, &plan));
    EXPECT_FAIL(MSA_EINVAL, "attend_backward: ctx = NULL",
                msa_attend_backward(NULL, &plan, &a, workspace, sizeof(workspace)));
    expect_outputs_untouched();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reverse_index), cmocka_unit_test(test_attend_backward),
        cmocka_unit_test(test_index_kl),      cmocka_unit_test(test_dense_attend_backward),
        cmocka_unit_test(test_block_mass),    cmocka_unit_test(test_plans_are_not_mixed_up),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
