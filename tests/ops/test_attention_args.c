/* Every check of the attention operators: one wrong argument at a time, the code, the message, and
 * outputs that nobody touched. A device backend meets what can be checked without looking into its
 * memory; it is refused before it would use a pointer, so these are host pointers all the same. */
#include "harness/cmocka_all.h"

#include "ops/attention_run.h"
#include "ops/check.h"
#include "ops/layer_fixture.h"

#include <math.h>
#include <stdlib.h>

enum { TOKENS = 6, Q_HEADS = 4, KV_HEADS = 2, DIM = 32, INDEX_DIM = 16, BLOCK = 16, TOPK = 3 };

static msa_context *ctx;
static problem *p;

/* Copies that a test may spoil. */
static int32_t cu_q[4], cu_k[4], lens[3], table[64], rows[TOKENS * KV_HEADS * TOPK];
static int32_t out_blocks[TOKENS * KV_HEADS * TOPK];
static float out_scores[TOKENS * KV_HEADS * 8], out_lse[TOKENS * Q_HEADS];
static float out[TOKENS * Q_HEADS * DIM], sink[Q_HEADS];
static unsigned char workspace[1 << 20] __attribute__((aligned(64)));

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
                         .n_local = 1,
                         .paged = 1};
    ctx = open_test_context(test_backend() ? test_backend() : "ref", NULL, 1);
    p = problem_create(&spec, 51);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    problem_free(p);
    msa_context_destroy(ctx);
    return 0;
}

static void reset_arrays(void)
{
    memcpy(cu_q, p->cu_q, sizeof(cu_q));
    memcpy(cu_k, p->cu_k, sizeof(cu_k));
    memcpy(lens, p->kv_lens, sizeof(lens));
    memcpy(table, p->page_table, (size_t)p->spec.n_seqs * (size_t)p->n_blocks * sizeof(int32_t));
    for (int32_t row = 0; row < TOKENS * KV_HEADS; row++) {
        int32_t local = p->position[row / KV_HEADS] / BLOCK;
        for (int32_t k = 0; k < TOPK; k++) rows[row * TOPK + k] = k <= local ? k : -1;
    }
    for (int h = 0; h < Q_HEADS; h++) sink[h] = 0;
    memset(out_blocks, 0x11, sizeof(out_blocks));
    memset(out_scores, 0x11, sizeof(out_scores));
    memset(out_lse, 0x11, sizeof(out_lse));
    memset(out, 0x11, sizeof(out));
}

static int is_touched(const void *array, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++) {
        if (((const unsigned char *)array)[i] != 0x11) return 1;
    }
    return 0;
}

static void expect_outputs_untouched(void)
{
    assert_false(is_touched(out_blocks, sizeof(out_blocks)));
    assert_false(is_touched(out_scores, sizeof(out_scores)));
    assert_false(is_touched(out_lse, sizeof(out_lse)));
    assert_false(is_touched(out, sizeof(out)));
}

static void spoil_view(msa_kv_view *kv)
{
    kv->page_table = table;
    kv->kv_lens = lens;
}

/* The same keys as packed rows; the contents do not matter here. */
static void make_packed(msa_kv_view *kv)
{
    kv->page_table = NULL;
    kv->page_table_stride = 0;
    kv->cu_seqlens_k = cu_k;
    kv->k = msa_tensor_make(kv->k.data, kv->k.dtype, 3, cu_k[3], KV_HEADS, DIM, 1);
    kv->v = msa_tensor_make(kv->v.data, kv->v.dtype, 3, cu_k[3], KV_HEADS, DIM, 1);
    kv->k_index = msa_tensor_make(kv->k_index.data, kv->k_index.dtype, 2, cu_k[3], INDEX_DIM, 1, 1);
}

/* Planning and running must both refuse, or (ONLY_RUN) only running: planning ignores contents. */
#define REJECTS_IN(op, args, only_run, change, text)                                               \
    do {                                                                                           \
        reset_arrays();                                                                            \
        args = valid_##op();                                                                       \
        msa_plan plan_;                                                                            \
        msa_plan_init(&plan_);                                                                     \
        EXPECT_OK(msa_##op##_plan(ctx, &args, &plan_));                                            \
        change;                                                                                    \
        EXPECT_FAIL(MSA_EINVAL, text, msa_##op(ctx, &plan_, &args, workspace, sizeof(workspace))); \
        expect_outputs_untouched();                                                                \
        if (only_run) {                                                                            \
            EXPECT_OK(msa_##op##_plan(ctx, &args, &plan_));                                        \
        } else {                                                                                   \
            EXPECT_FAIL(MSA_EINVAL, text, msa_##op##_plan(ctx, &args, &plan_));                    \
        }                                                                                          \
    } while (0)

/* Wrong contents: running alone refuses, where the host can look. */
#define REJECTS_CONTENTS_IN(op, args, change, text)                                                \
    do {                                                                                           \
        if (!msa_context_uses_device_memory(ctx)) REJECTS_IN(op, args, 1, change, text);           \
    } while (0)

/* ---- select ---------------------------------------------------------------------------------- */

static msa_select_args valid_select(void)
{
    msa_select_args args = select_args(p);
    args.cu_seqlens_q = cu_q;
    spoil_view(&args.kv);
    args.blocks = msa_tensor_make(out_blocks, MSA_DTYPE_I32, 3, TOKENS, KV_HEADS, TOPK, 1);
    args.block_scores = msa_tensor_make(out_scores, MSA_DTYPE_F32, 3, TOKENS, KV_HEADS, 8, 1);
    args.index_lse = msa_tensor_make(out_lse, MSA_DTYPE_F32, 2, TOKENS, KV_HEADS, 1, 1);
    return args;
}

static void test_select_checks_shapes(void **state)
{
    (void)state;
    msa_select_args a;
#define REJECTS(change, text) REJECTS_IN(select, a, 0, change, text)
    REJECTS(a.flags = 4, "select: args.flags = 4, must be 0");
    REJECTS(a.struct_size = 4, "select: args.struct_size = 4");
    REJECTS(a.q_index.n_dims = 2, "select: q_index.n_dims = 2, must be 3");
    REJECTS(a.q_index.dtype = MSA_DTYPE_F8_E4M3,
            "q_index.dtype = 3 (fp8_e4m3), must be f32, bf16 or f16");
    REJECTS(a.q_index.dtype = 77, "q_index.dtype = 77 (?)");
    REJECTS(a.q_index.dtype = -1, "q_index.dtype = -1 (?)");
    REJECTS(a.q_index.shape[0] = -1, "q_index.shape[0] = -1, must not be negative");
    REJECTS(a.q_index.shape[1] = 0, "q_index.shape[1] = 0, must be 1..");
    REJECTS(a.q_index.shape[2] = 8, "q_index.shape[2] = 8, must be a multiple of 16");
    REJECTS(a.q_index.shape[2] = 528, "q_index.shape[2] = 528");
    REJECTS(a.q_index.stride[2] = 2, "q_index.stride[2] = 2, must be 1");
    REJECTS(a.q_index.stride[0] = 0, "q_index.stride[0] = 0, must be positive");
    REJECTS(a.q_index.stride[1] = -16, "q_index.stride[1] = -16, must be positive");
    REJECTS(a.q_index.stride[0] = INT64_MAX / 2, "q_index.stride, must keep offsets");
    REJECTS(a.block_size = 24, "block_size = 24, must be a power of two in 16..256");
    REJECTS(a.block_size = 512, "block_size = 512");
    REJECTS(a.block_size = -16, "block_size = -16");
    REJECTS(a.topk = 65, "topk = 65, must be 1..64");
    REJECTS(a.topk = -1, "topk = -1");
    REJECTS(a.n_init = -1, "n_init = -1, must be 0..2");
    REJECTS(a.n_init = 3, "n_init = 3, must be 0..2");
    REJECTS(a.n_local = -2, "n_local = -2, must be -1..3");
    REJECTS((a.n_init = 2, a.n_local = 2), "n_local = 2, must be -1..1");
    REJECTS(a.settled = 2, "settled = 2, must be 0..1");
    REJECTS(a.index_scale = -1, "index_scale = -1, must be finite and positive");
    REJECTS(a.index_scale = NAN, "index_scale = ");
    REJECTS(a.index_scale = INFINITY, "index_scale = inf");
    REJECTS(a.blocks.dtype = MSA_DTYPE_F32, "blocks.dtype = 0 (f32), must be i32");
    REJECTS(a.blocks.shape[0] = 5, "blocks.shape[0] = 5, must equal q_index's T = 6");
    REJECTS(a.blocks.shape[1] = 1, "blocks.shape[1] = 1, must equal q_index's Hkv = 2");
    REJECTS(a.blocks.shape[2] = 2, "blocks.shape[2] = 2, must equal topk = 3");
    REJECTS(a.blocks.stride[1] = 2, "blocks.stride[1] = 2, must keep elements apart");
    REJECTS(a.blocks.stride[0] = 3, "must keep elements apart");
    REJECTS(a.block_scores.dtype = MSA_DTYPE_BF16, "block_scores.dtype = 1 (bf16), must be f32");
    REJECTS(a.block_scores.shape[0] = 7, "block_scores.shape[0] = 7");
    REJECTS(a.index_lse.n_dims = 3, "index_lse.n_dims = 3, must be 2");
    REJECTS(a.index_lse.shape[1] = 1, "index_lse.shape[1] = 1, must equal q_index's Hkv = 2");
#undef REJECTS
}

static void test_select_checks_the_view(void **state)
{
    (void)state;
    msa_select_args a;
#define REJECTS(change, text) REJECTS_IN(select, a, 0, change, text)
    REJECTS(a.kv.page_table = NULL, "kv.page_table and kv.cu_seqlens_k are both NULL");
    REJECTS(a.kv.cu_seqlens_k = cu_k, "kv.page_table and kv.cu_seqlens_k are both set");
    REJECTS(a.kv.n_seqs = -1, "kv.n_seqs = -1");
    REJECTS(a.kv.page_table_stride = -1, "kv.page_table_stride = -1");
    REJECTS(a.kv.k_index.n_dims = 2, "kv.k_index.n_dims = 2, must be 3");
    REJECTS(a.kv.k_index.dtype = MSA_DTYPE_F16,
            "kv.k_index.dtype = 2 (f16), must be f32, bf16 or fp8_e4m3");
    REJECTS(a.kv.k_index.shape[1] = 32, "kv.k_index.shape[1] = 32, must equal block_size = 16");
    REJECTS(a.kv.k_index.shape[2] = 32, "kv.k_index.shape[2] = 32, must equal Di = 16");
    REJECTS(a.kv.k_index_scale = 2, "kv.k_index_scale = 2, must be 0 or 1 for a lane of f32");
    REJECTS((a.kv.k_index.dtype = MSA_DTYPE_F8_E4M3, a.kv.k_index_scale = -2),
            "kv.k_index_scale = -2, must be finite and positive");
#undef REJECTS
#define REJECTS(change, text) REJECTS_IN(select, a, 1, change, text)
    REJECTS(a.q_index.data = NULL, "select: q_index = NULL, must be a pointer");
    REJECTS(a.q_index.data = (char *)a.q_index.data + 2, "must be aligned to its 4-byte elements");
    REJECTS(a.kv.k_index.data = NULL, "kv.k_index = NULL");
    REJECTS(a.blocks.data = NULL, "blocks = NULL");
    REJECTS(a.blocks.data = (char *)a.blocks.data + 1, "blocks = ");
    REJECTS(a.cu_seqlens_q = NULL, "cu_seqlens_q = NULL");
    REJECTS(a.kv.kv_lens = NULL, "kv.kv_lens = NULL");
#undef REJECTS
#define REJECTS(change, text) REJECTS_CONTENTS_IN(select, a, change, text)
    REJECTS(a.block_scores.shape[2] = 2, "block_scores.shape[2] = 2, must be 3..");
    REJECTS(cu_q[0] = 1, "cu_seqlens_q[0] = 1, must be 0");
    REJECTS(cu_q[1] = 5, "cu_seqlens_q[2] = 4, must not be below its predecessor 5");
    REJECTS(cu_q[3] = 7, "cu_seqlens_q[3] = 7, must be equal to the rows' 6");
    REJECTS(lens[1] = -5, "kv.kv_lens[1] = -5, must not be negative");
    REJECTS(lens[0] = 2, "sequence 0 has T = 3, must be at most its S = 2");
    REJECTS(lens[0] = 49, "kv.kv_lens[0] = 49, must fit 3 pages of 16 tokens");
    REJECTS(table[1] = -1, "kv.page_table[0][1] = -1, must be 0..10");
    REJECTS(table[3] = 11, "kv.page_table[1][0] = 11, must be 0..10");
    REJECTS(make_packed(&a.kv); cu_k[0] = 2, "kv.cu_seqlens_k[0] = 2, must be 0");
    REJECTS(make_packed(&a.kv);
            cu_k[3] = 76, "kv.cu_seqlens_k[3] = 76, must be at most the rows' 75");
    REJECTS(make_packed(&a.kv); lens[1] = 34, "kv.kv_lens[1] = 34, must be at most its 33 rows");
    REJECTS(make_packed(&a.kv); a.kv.kv_lens = NULL;
            cu_k[1] = 1, "sequence 0 has T = 3, must be at most its S = 1");
#undef REJECTS
}

/* ---- attend and dense_attend ------------------------------------------------------------------
 */

static msa_attend_args valid_attend(void)
{
    msa_tensor blocks = msa_tensor_make(rows, MSA_DTYPE_I32, 3, TOKENS, KV_HEADS, TOPK, 1);
    msa_attend_args args = attend_args(p, &blocks);
    args.cu_seqlens_q = cu_q;
    spoil_view(&args.kv);
    args.out = msa_tensor_make(out, MSA_DTYPE_F32, 3, TOKENS, Q_HEADS, DIM, 1);
    args.lse = msa_tensor_make(out_lse, MSA_DTYPE_F32, 2, TOKENS, Q_HEADS, 1, 1);
    return args;
}

static msa_dense_attend_args valid_dense_attend(void)
{
    msa_dense_attend_args args = dense_args(p);
    args.cu_seqlens_q = cu_q;
    spoil_view(&args.kv);
    args.sink_logit = sink;
    args.window = 5;
    args.out = msa_tensor_make(out, MSA_DTYPE_F32, 3, TOKENS, Q_HEADS, DIM, 1);
    args.lse = msa_tensor_make(out_lse, MSA_DTYPE_F32, 2, TOKENS, Q_HEADS, 1, 1);
    return args;
}

static void test_attend_checks(void **state)
{
    (void)state;
    msa_attend_args a;
#define REJECTS(change, text) REJECTS_IN(attend, a, 0, change, text)
    REJECTS(a.flags = 1, "attend: args.flags = 1");
    REJECTS(a.q.dtype = MSA_DTYPE_I32, "attend: q.dtype = 5 (i32)");
    REJECTS(a.q.shape[2] = 40, "attend: q.shape[2] = 40, must be a multiple of 16");
    REJECTS(a.q.shape[1] = 3, "q.shape[1] = 3, must be 1..32 times Hkv = 2");
    REJECTS(a.q.shape[1] = 66, "q.shape[1] = 66, must be 1..32 times Hkv = 2");
    REJECTS(a.q.shape[1] = 0, "q.shape[1] = 0");
    REJECTS(a.blocks.shape[0] = 7, "blocks.shape[0] = 7, must equal q's T = 6");
    REJECTS(a.blocks.shape[2] = 65, "blocks.shape[2] = 65, must be 1..64");
    REJECTS(a.blocks.shape[2] = 0, "blocks.shape[2] = 0");
    REJECTS(a.blocks.shape[1] = 0, "times Hkv = 0");
    REJECTS(a.block_size = 8, "block_size = 8");
    REJECTS(a.scale = -0.5f, "scale = -0.5, must be finite and positive");
    REJECTS(a.scale = NAN, "attend: scale = ");
    REJECTS(a.kv.k.shape[3] = 48, "kv.k.shape[3] = 48, must equal D = 32");
    REJECTS(a.kv.k.shape[1] = 4, "kv.k.shape[1] = 4, must equal Hkv = 2");
    REJECTS(a.kv.v.shape[0] = 3, "kv.v.shape[0] = 3, must equal kv.k.shape[0] = 11");
    REJECTS(a.kv.v.shape[2] = 32, "kv.v.shape[2] = 32, must equal block_size = 16");
    REJECTS(a.kv.v_scale = 3, "kv.v_scale = 3");
    REJECTS(a.out.dtype = MSA_DTYPE_BF16, "out.dtype = 1 (bf16), must be f32");
    REJECTS(a.out.shape[2] = 16, "out.shape[2] = 16, must equal q's D = 32");
    REJECTS(a.out.stride[1] = 16, "out.stride[1] = 16, must keep elements apart");
    REJECTS(a.lse.shape[1] = 2, "lse.shape[1] = 2, must equal q's Hq = 4");
#undef REJECTS
#define REJECTS(change, text) REJECTS_IN(attend, a, 1, change, text)
    REJECTS(a.q.data = NULL, "attend: q = NULL");
    REJECTS(a.kv.k.data = NULL, "attend: kv.k = NULL");
    REJECTS(a.kv.v.data = (char *)a.kv.v.data + 1, "attend: kv.v = ");
    REJECTS(a.blocks.data = NULL, "attend: blocks = NULL");
    REJECTS(a.out.data = NULL, "attend: out = NULL");
#undef REJECTS
#define REJECTS(change, text) REJECTS_CONTENTS_IN(attend, a, change, text)
    /* Token 0 is at position 37: its blocks are 0, 1, 2. */
    REJECTS(rows[2] = 3, "blocks[0][0][2] = 3, must ascend within 0..2 and end in -1");
    REJECTS(rows[1] = 0, "blocks[0][0][1] = 0, must ascend");
    REJECTS(rows[0] = 2, "blocks[0][0][1] = 1, must ascend");
    REJECTS(rows[0] = -1, "blocks[0][0][1] = 1, must ascend");
    REJECTS(rows[0] = -2, "blocks[0][0][0] = -2, must ascend");
    REJECTS(rows[5 * KV_HEADS * TOPK + TOPK] = 1, "blocks[5][1][0] = 1, must ascend within 0..0");
#undef REJECTS
}

static void test_dense_attend_checks(void **state)
{
    (void)state;
    msa_dense_attend_args a;
#define REJECTS(change, text) REJECTS_IN(dense_attend, a, 0, change, text)
    REJECTS(a.flags = 1, "dense_attend: args.flags = 1");
    REJECTS(a.window = -1, "dense_attend: window = -1");
    REJECTS(a.n_sink_tokens = -1, "dense_attend: n_sink_tokens = -1");
    REJECTS((a.window = 0, a.n_sink_tokens = 4), "n_sink_tokens = 4, must be 0 without a window");
    REJECTS(a.q.shape[2] = 520, "q.shape[2] = 520");
    REJECTS(a.q.shape[1] = 5, "q.shape[1] = 5, must be 1..32 times Hkv = 2");
    REJECTS(a.block_size = 32, "kv.k.shape[2] = 16, must equal block_size = 32");
    REJECTS(a.scale = INFINITY, "scale = inf");
    REJECTS(a.kv.k.n_dims = 3, "kv.k.n_dims = 3, must be 4");
    REJECTS(a.kv.v.shape[1] = 1, "kv.v.shape[1] = 1, must equal Hkv = 2");
    REJECTS(a.lse.dtype = MSA_DTYPE_F16, "lse.dtype = 2 (f16), must be f32");
#undef REJECTS
#define REJECTS(change, text) REJECTS_IN(dense_attend, a, 1, change, text)
    REJECTS(a.sink_logit = (const float *)(const void *)((const char *)sink + 1), "sink_logit = ");
    REJECTS(a.out.data = NULL, "dense_attend: out = NULL");
#undef REJECTS
#define REJECTS(change, text) REJECTS_CONTENTS_IN(dense_attend, a, change, text)
    REJECTS(sink[2] = NAN, "sink_logit[2] = ");
    REJECTS(sink[1] = INFINITY, "sink_logit[1] = inf, must be finite or -inf");
    REJECTS(cu_q[3] = 5, "cu_seqlens_q[3] = 5");
#undef REJECTS
}

/* ---- select_attend -----------------------------------------------------------------------------
 */

static msa_select_args both_select;
static msa_attend_args both_attend;

static msa_select_attend_args valid_select_attend(void)
{
    msa_select_attend_args args;
    both_select = valid_select();
    both_attend = valid_attend();
    both_select.block_scores = (msa_tensor){0};
    both_select.index_lse = (msa_tensor){0};
    both_attend.blocks = both_select.blocks;
    both_attend.cu_seqlens_q = both_select.cu_seqlens_q;
    both_attend.kv.page_table = both_select.kv.page_table;
    both_attend.kv.kv_lens = both_select.kv.kv_lens;
    msa_select_attend_args_init(&args);
    args.select = &both_select;
    args.attend = &both_attend;
    return args;
}

static void test_select_attend_checks(void **state)
{
    (void)state;
    static int32_t other_cu_q[4], other_lens[3], other_table[64];
    msa_select_attend_args a;
#define REJECTS(only_run, change, text) REJECTS_IN(select_attend, a, only_run, change, text)
    REJECTS(0, a.select = NULL, "select: args = NULL");
    REJECTS(0, a.attend = NULL, "attend: args = NULL");
    REJECTS(0, both_select.topk = 65, "select: topk = 65");
    REJECTS(0, both_attend.scale = -1, "attend: scale = -1");
    reset_arrays();
    memcpy(other_cu_q, cu_q, sizeof(cu_q));
    memcpy(other_lens, lens, sizeof(lens));
    memcpy(other_table, table, sizeof(table));
    REJECTS(1, both_attend.blocks.data = rows, "attend.blocks, must be the same as select.blocks");
    REJECTS(1, both_attend.cu_seqlens_q = other_cu_q, "attend.cu_seqlens_q, must be the same");
    REJECTS(1, both_attend.kv.page_table = other_table, "attend.kv.page_table, must be the same");
    REJECTS(1, both_attend.kv.kv_lens = other_lens, "attend.kv.kv_lens, must be the same");
#undef REJECTS
}

/* ---- plans ------------------------------------------------------------------------------------
 */

static void test_plans_are_checked(void **state)
{
    (void)state;
    reset_arrays();
    msa_attend_args a = valid_attend();
    msa_select_args s = valid_select();
    msa_plan plan;
    msa_plan_init(&plan);
    EXPECT_FAIL(MSA_EINVAL, "attend: plan = NULL", msa_attend_plan(ctx, &a, NULL));
    EXPECT_FAIL(MSA_EINVAL, "attend: ctx = NULL", msa_attend_plan(NULL, &a, &plan));
    EXPECT_FAIL(MSA_EINVAL, "attend: args = NULL", msa_attend_plan(ctx, NULL, &plan));
    EXPECT_FAIL(MSA_EINVAL, "plan.op = 0 (no operator), must be 2 (attend)",
                msa_attend(ctx, &plan, &a, workspace, sizeof(workspace)));
    EXPECT_OK(msa_select_plan(ctx, &s, &plan));
    EXPECT_FAIL(MSA_EINVAL, "attend: plan.op = 1 (select), must be 2 (attend)",
                msa_attend(ctx, &plan, &a, workspace, sizeof(workspace)));
    EXPECT_FAIL(MSA_EINVAL, "select: plan = NULL", msa_select(ctx, NULL, &s, workspace, 0));
    plan.struct_size = 8;
    EXPECT_FAIL(MSA_EVERSION, "select: plan.struct_size = 8, must be at least 16",
                msa_select(ctx, &plan, &s, workspace, sizeof(workspace)));
    EXPECT_FAIL(MSA_EVERSION, "plan.struct_size = 8", msa_select_plan(ctx, &s, &plan));
    expect_outputs_untouched();
}

static void test_workspaces_are_checked(void **state)
{
    (void)state;
    const msa__check at = {.op = "attend", .running = 1};
    msa_plan plan;
    msa_plan_init(&plan);
    msa__fill_plan(&plan, MSA__OP_ATTEND, 128);
#define CHECK(needed, memory, bytes)                                                               \
    msa__check_workspace(&at, &plan, MSA__OP_ATTEND, needed, memory, bytes)
    EXPECT_OK(CHECK(128, workspace, 128));
    EXPECT_OK(CHECK(0, NULL, 0));
    EXPECT_FAIL(MSA_EINVAL, "plan.workspace_bytes = 128, must be at least 192 for these shapes",
                CHECK(192, workspace, sizeof(workspace)));
    EXPECT_FAIL(MSA_EINVAL, "attend: workspace_bytes = 127, must be at least 128",
                CHECK(128, workspace, 127));
    EXPECT_FAIL(MSA_EINVAL, "attend: workspace = NULL", CHECK(128, NULL, 128));
    EXPECT_FAIL(MSA_EINVAL, "must be aligned to 64", CHECK(64, workspace + 32, 128));
#undef CHECK
}

/* An old caller's struct ends earlier: the rest is zero. A newer one may be longer, with zeros. */
static void test_struct_sizes_of_other_versions(void **state)
{
    (void)state;
    if (msa_context_uses_device_memory(ctx)) return; /* it would run, on host pointers */
    reset_arrays();
    struct {
        msa_attend_args args;
        unsigned char newer[16];
    } longer;
    memset(&longer, 0, sizeof(longer));
    longer.args = valid_attend();
    longer.args.struct_size = sizeof(longer);
    msa_plan plan;
    msa_plan_init(&plan);
    EXPECT_OK(msa_attend_plan(ctx, &longer.args, &plan));
    EXPECT_OK(msa_attend(ctx, &plan, &longer.args, workspace, sizeof(workspace)));
    assert_true(is_touched(out_lse, sizeof(out_lse)));
    longer.newer[3] = 1;
    EXPECT_FAIL(MSA_EVERSION,
                "attend: args.struct_size = ", msa_attend_plan(ctx, &longer.args, &plan));

    reset_arrays();
    msa_attend_args shorter = valid_attend();
    shorter.struct_size = (uint32_t)offsetof(msa_attend_args, lse); /* before lse was added */
    EXPECT_OK(msa_attend(ctx, &plan, &shorter, workspace, sizeof(workspace)));
    assert_false(is_touched(out_lse, sizeof(out_lse)));
    assert_true(is_touched(out, sizeof(out)));
}

/* Planning for the largest shapes serves smaller ones; data is not looked at. */
static void test_planning_needs_no_data(void **state)
{
    (void)state;
    reset_arrays();
    msa_select_args s = valid_select();
    s.q_index.data = s.blocks.data = s.block_scores.data = s.kv.k_index.data = NULL;
    s.cu_seqlens_q = s.kv.kv_lens = NULL;
    msa_plan plan;
    msa_plan_init(&plan);
    EXPECT_OK(msa_select_plan(ctx, &s, &plan));
    msa_attend_args a = valid_attend();
    a.q.data = a.blocks.data = a.out.data = a.lse.data = a.kv.k.data = a.kv.v.data = NULL;
    a.cu_seqlens_q = a.kv.kv_lens = NULL;
    EXPECT_OK(msa_attend_plan(ctx, &a, &plan));
    a.lse.n_dims = 0; /* absent */
    EXPECT_OK(msa_attend_plan(ctx, &a, &plan));
}

/* ---- operators without a plan ------------------------------------------------------------------
 */

static void test_block_topk_checks(void **state)
{
    (void)state;
    static float scores[TOKENS * KV_HEADS * 8];
    int32_t n_visible[TOKENS] = {1, 2, 3, 4, 5, 8};
    msa_block_topk_args a;
#define REJECTS(change, text)                                                                      \
    do {                                                                                           \
        reset_arrays();                                                                            \
        msa_block_topk_args_init(&a);                                                              \
        a.scores = msa_tensor_make(scores, MSA_DTYPE_F32, 3, TOKENS, KV_HEADS, 8, 1);              \
        a.n_visible = n_visible;                                                                   \
        a.topk = TOPK;                                                                             \
        a.blocks = msa_tensor_make(out_blocks, MSA_DTYPE_I32, 3, TOKENS, KV_HEADS, TOPK, 1);       \
        change;                                                                                    \
        EXPECT_FAIL(MSA_EINVAL, text, msa_block_topk(ctx, &a));                                    \
        expect_outputs_untouched();                                                                \
    } while (0)
    REJECTS(a.scores.dtype = MSA_DTYPE_F16, "block_topk: scores.dtype = 2 (f16), must be f32");
    REJECTS(a.scores.data = NULL, "block_topk: scores = NULL");
    REJECTS(a.scores.shape[1] = 0, "scores.shape[1] = 0");
    REJECTS(a.n_visible = NULL, "n_visible = NULL");
    if (!msa_context_uses_device_memory(ctx)) {
        REJECTS(a.scores.shape[2] = 7, "n_visible[5] = 8, must be 0..N = 7");
    }
    REJECTS(a.topk = 0, "blocks.shape[2] = 3, must equal topk = 16");
    REJECTS(a.topk = 65, "topk = 65");
    REJECTS(a.n_init = 3, "n_init = 3");
    REJECTS(a.n_local = 4, "n_local = 4");
    REJECTS(a.blocks.shape[0] = 5, "blocks.shape[0] = 5, must equal scores' T = 6");
    REJECTS(a.blocks.data = NULL, "blocks = NULL");
    EXPECT_FAIL(MSA_EINVAL, "block_topk: args = NULL", msa_block_topk(ctx, NULL));
    EXPECT_FAIL(MSA_EINVAL, "block_topk: ctx = NULL", msa_block_topk(NULL, &a));
#undef REJECTS
}

static void test_merge_checks(void **state)
{
    (void)state;
    static float part[TOKENS * Q_HEADS * DIM], part_lse[TOKENS * Q_HEADS];
    msa_attend_merge_args a;
#define REJECTS(change, text)                                                                      \
    do {                                                                                           \
        reset_arrays();                                                                            \
        msa_attend_merge_args_init(&a);                                                            \
        a.out_a = a.out_b = msa_tensor_make(part, MSA_DTYPE_F32, 3, TOKENS, Q_HEADS, DIM, 1);      \
        a.lse_a = a.lse_b = msa_tensor_make(part_lse, MSA_DTYPE_F32, 2, TOKENS, Q_HEADS, 1, 1);    \
        a.out = msa_tensor_make(out, MSA_DTYPE_F32, 3, TOKENS, Q_HEADS, DIM, 1);                   \
        a.lse = msa_tensor_make(out_lse, MSA_DTYPE_F32, 2, TOKENS, Q_HEADS, 1, 1);                 \
        change;                                                                                    \
        EXPECT_FAIL(MSA_EINVAL, text, msa_attend_merge(ctx, &a));                                  \
        expect_outputs_untouched();                                                                \
    } while (0)
    REJECTS(a.out.data = NULL, "attend_merge: out = NULL");
    REJECTS(a.out.shape[2] = 24, "out.shape[2] = 24");
    REJECTS(a.out_a.data = NULL, "out_a = NULL");
    REJECTS(a.out_a.shape[0] = 5, "out_a.shape[0] = 5, must equal out's T = 6");
    REJECTS(a.out_b.shape[2] = 16, "out_b.shape[2] = 16, must equal out's D = 32");
    REJECTS(a.lse_a.data = NULL, "lse_a = NULL");
    REJECTS(a.lse_b.shape[1] = 3, "lse_b.shape[1] = 3, must equal out's Hq = 4");
    REJECTS(a.lse_b.dtype = MSA_DTYPE_BF16, "lse_b.dtype = 1 (bf16), must be f32");
    REJECTS(a.lse.shape[0] = 2, "attend_merge: lse.shape[0] = 2");
#undef REJECTS
}

static void test_append_checks(void **state)
{
    (void)state;
    static float k[TOKENS * KV_HEADS * DIM], v[TOKENS * KV_HEADS * DIM],
        k_index[TOKENS * INDEX_DIM];
    msa_kv_append_args a;
#define REJECTS(change, text)                                                                      \
    do {                                                                                           \
        reset_arrays();                                                                            \
        msa_kv_append_args_init(&a);                                                               \
        a.k = msa_tensor_make(k, MSA_DTYPE_F32, 3, TOKENS, KV_HEADS, DIM, 1);                      \
        a.v = msa_tensor_make(v, MSA_DTYPE_F32, 3, TOKENS, KV_HEADS, DIM, 1);                      \
        a.k_index = msa_tensor_make(k_index, MSA_DTYPE_F32, 2, TOKENS, INDEX_DIM, 1, 1);           \
        a.cu_seqlens_q = cu_q;                                                                     \
        a.kv = p->kv;                                                                              \
        spoil_view(&a.kv);                                                                         \
        a.block_size = BLOCK;                                                                      \
        change;                                                                                    \
        EXPECT_FAIL(MSA_EINVAL, text, msa_kv_append(ctx, &a));                                     \
    } while (0)
    REJECTS(a.k.data = NULL, "kv_append: k = NULL");
    REJECTS(a.k.shape[2] = 24, "k.shape[2] = 24");
    REJECTS(a.v.shape[1] = 1, "v.shape[1] = 1, must equal k's Hkv = 2");
    REJECTS(a.v.dtype = MSA_DTYPE_F8_E4M3, "v.dtype = 3");
    REJECTS(a.k_index.data = NULL,
            "k_index is absent, must be present exactly where kv.k_index is");
    REJECTS(a.kv.k_index.data = NULL, "k_index is present, must be present exactly where");
    REJECTS(a.k_index.shape[1] = 32, "kv.k_index.shape[2] = 16, must equal Di = 32");
    REJECTS(a.k_index.shape[0] = 5, "k_index.shape[0] = 5, must equal k's T = 6");
    REJECTS(a.kv.k.data = NULL, "kv.k = NULL");
    REJECTS(a.kv.k.stride[2] = 16, "kv.k.stride[2] = 16, must keep elements apart");
    REJECTS(a.kv.k_index.stride[1] = 8, "kv.k_index.stride[1] = 8, must keep elements apart");
    REJECTS(a.kv.k_index.shape[0] = 3, "kv.k_index.shape[0] = 3, must equal kv.k.shape[0] = 11");
    REJECTS(a.block_size = 0, "kv.k.shape[2] = 16, must equal block_size = 128");
    if (!msa_context_uses_device_memory(ctx)) {
        REJECTS(lens[2] = 1, "sequence 2 has T = 2, must be at most its S = 1");
        REJECTS(table[6] = 99, "kv.page_table[2][0] = 99");
    }
#undef REJECTS
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_select_checks_shapes),
        cmocka_unit_test(test_select_checks_the_view),
        cmocka_unit_test(test_attend_checks),
        cmocka_unit_test(test_dense_attend_checks),
        cmocka_unit_test(test_select_attend_checks),
        cmocka_unit_test(test_plans_are_checked),
        cmocka_unit_test(test_workspaces_are_checked),
        cmocka_unit_test(test_struct_sizes_of_other_versions),
        cmocka_unit_test(test_planning_needs_no_data),
        cmocka_unit_test(test_block_topk_checks),
        cmocka_unit_test(test_merge_checks),
        cmocka_unit_test(test_append_checks),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
