/* See attention_run.h. */
#define _POSIX_C_SOURCE 200809L
#include "ops/attention_run.h"

#include "harness/cmocka_all.h"
#include "ops/calls.h"
#include "ops/layer_fixture.h"

#include <stdlib.h>

#define GUARD_BYTES 64

void results_free(results *r)
{
    free(r->blocks);
    free(r->block_scores);
    free(r->index_lse);
    free(r->out);
    free(r->lse);
    memset(r, 0, sizeof(*r));
}

msa_context *attention_context(int32_t i)
{
    return context_at(2 * i); /* ref, then a pair of 1 and 3 threads for each */
}

/* ---- workspace ------------------------------------------------------------------------------- */

guarded guarded_begin(const msa_plan *plan)
{
    guarded s = {NULL, plan->workspace_bytes};
    void *data = NULL;
    assert_int_equal(posix_memalign(&data, 64, s.bytes + GUARD_BYTES), 0);
    s.data = data;
    memset(s.data, 0xff, s.bytes);
    memset(s.data + s.bytes, 0xc3, GUARD_BYTES);
    return s;
}

void guarded_end(guarded *s)
{
    for (size_t i = 0; i < GUARD_BYTES; i++) {
        if (s->data[s->bytes + i] != 0xc3) fail_msg("wrote behind the workspace");
    }
    free(s->data);
}

/* ---- outputs --------------------------------------------------------------------------------- */

static msa_tensor new_output(const problem *p, msa_dtype dtype, int32_t n_dims, int64_t heads,
                             int64_t last)
{
    int64_t pad = p->spec.oversized ? 3 : 0;
    if (n_dims == 2) return poisoned_tensor(dtype, 2, p->n_tokens, heads, 1, 1, pad);
    return poisoned_tensor(dtype, 3, p->n_tokens, heads, last, 1, pad);
}

void *take_output(msa_tensor *t)
{
    size_t n = 4;
    for (int32_t i = 0; i < t->n_dims; i++) n *= (size_t)t->shape[i];
    void *values = malloc(n ? n : 1);
    assert_non_null(values);
    read_tensor(t, values);
    free(t->data);
    return values;
}

msa_tensor rows_tensor(const problem *p, const int32_t *rows, int32_t topk)
{
    msa_tensor t = new_output(p, MSA_DTYPE_I32, 3, p->spec.n_kv_heads, topk);
    for (int64_t i = 0; i < p->n_tokens; i++) {
        for (int64_t r = 0; r < p->spec.n_kv_heads; r++) {
            memcpy((int32_t *)t.data + i * t.stride[0] + r * t.stride[1],
                   rows + (i * p->spec.n_kv_heads + r) * topk, (size_t)topk * sizeof(*rows));
        }
    }
    return t;
}

/* ---- calls ----------------------------------------------------------------------------------- */

msa_select_args select_args(const problem *p)
{
    msa_select_args args;
    msa_select_args_init(&args);
    args.q_index = p->q_index_tensor;
    args.kv = p->kv;
    args.kv.k = args.kv.v = (msa_tensor){0};
    args.cu_seqlens_q = p->cu_q;
    args.block_size = p->spec.block_size;
    args.topk = p->spec.topk;
    args.n_init = p->spec.n_init;
    args.n_local = p->spec.n_local;
    return args;
}

msa_attend_args attend_args(const problem *p, const msa_tensor *blocks)
{
    msa_attend_args args;
    msa_attend_args_init(&args);
    args.q = p->q_tensor;
    args.kv = p->kv;
    args.kv.k_index = (msa_tensor){0};
    args.cu_seqlens_q = p->cu_q;
    args.blocks = *blocks;
    args.block_size = p->spec.block_size;
    return args;
}

msa_dense_attend_args dense_args(const problem *p)
{
    msa_dense_attend_args args;
    msa_dense_attend_args_init(&args);
    args.q = p->q_tensor;
    args.kv = p->kv;
    args.kv.k_index = (msa_tensor){0};
    args.cu_seqlens_q = p->cu_q;
    args.block_size = p->spec.block_size;
    return args;
}

void run_select(msa_context *ctx, const problem *p, results *r)
{
    msa_select_args args = select_args(p);
    args.blocks = new_output(p, MSA_DTYPE_I32, 3, p->spec.n_kv_heads, p->spec.topk);
    args.block_scores = new_output(p, MSA_DTYPE_F32, 3, p->spec.n_kv_heads, p->n_blocks);
    args.index_lse = new_output(p, MSA_DTYPE_F32, 2, p->spec.n_kv_heads, 1);
    msa_plan plan;
    msa_plan_init(&plan);
    EXPECT_OK(msa_select_plan(ctx, &args, &plan));
    guarded s = guarded_begin(&plan);
    EXPECT_OK(call_select(ctx, &plan, &args, s.data, s.bytes));
    guarded_end(&s);
    memset(r, 0, sizeof(*r));
    r->blocks = take_output(&args.blocks);
    r->block_scores = take_output(&args.block_scores);
    r->index_lse = take_output(&args.index_lse);
}

void run_attend(msa_context *ctx, const problem *p, const int32_t *rows, results *r)
{
    msa_tensor blocks = rows_tensor(p, rows, p->spec.topk);
    msa_attend_args args = attend_args(p, &blocks);
    args.out = new_output(p, p->spec.q_dtype, 3, p->spec.n_q_heads, p->spec.head_dim);
    args.lse = new_output(p, MSA_DTYPE_F32, 2, p->spec.n_q_heads, 1);
    msa_plan plan;
    msa_plan_init(&plan);
    EXPECT_OK(msa_attend_plan(ctx, &args, &plan));
    guarded s = guarded_begin(&plan);
    EXPECT_OK(call_attend(ctx, &plan, &args, s.data, s.bytes));
    guarded_end(&s);
    memset(r, 0, sizeof(*r));
    r->out = take_output(&args.out);
    r->lse = take_output(&args.lse);
    free(blocks.data);
}

void run_select_attend(msa_context *ctx, const problem *p, results *r)
{
    msa_select_args select = select_args(p);
    select.blocks = new_output(p, MSA_DTYPE_I32, 3, p->spec.n_kv_heads, p->spec.topk);
    msa_attend_args attend = attend_args(p, &select.blocks);
    attend.out = new_output(p, p->spec.q_dtype, 3, p->spec.n_q_heads, p->spec.head_dim);
    attend.lse = new_output(p, MSA_DTYPE_F32, 2, p->spec.n_q_heads, 1);
    msa_select_attend_args args;
    msa_select_attend_args_init(&args);
    args.select = &select;
    args.attend = &attend;
    msa_plan plan;
    msa_plan_init(&plan);
    EXPECT_OK(msa_select_attend_plan(ctx, &args, &plan));
    guarded s = guarded_begin(&plan);
    EXPECT_OK(call_select_attend(ctx, &plan, &args, s.data, s.bytes));
    guarded_end(&s);
    memset(r, 0, sizeof(*r));
    r->blocks = take_output(&select.blocks);
    r->out = take_output(&attend.out);
    r->lse = take_output(&attend.lse);
}

void run_dense(msa_context *ctx, const problem *p, const msa_dense_attend_args *options, results *r)
{
    msa_dense_attend_args args = options ? *options : dense_args(p);
    args.out = new_output(p, p->spec.q_dtype, 3, p->spec.n_q_heads, p->spec.head_dim);
    args.lse = new_output(p, MSA_DTYPE_F32, 2, p->spec.n_q_heads, 1);
    msa_plan plan;
    msa_plan_init(&plan);
    EXPECT_OK(msa_dense_attend_plan(ctx, &args, &plan));
    guarded s = guarded_begin(&plan);
    EXPECT_OK(call_dense_attend(ctx, &plan, &args, s.data, s.bytes));
    guarded_end(&s);
    memset(r, 0, sizeof(*r));
    r->out = take_output(&args.out);
    r->lse = take_output(&args.lse);
}
