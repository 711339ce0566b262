/* See gradient_run.h. */
#include "ops/gradient_run.h"

#include "base/numeric.h"
#include "base/rng.h"
#include "harness/cmocka_all.h"
#include "model/block_rows.h"
#include "ops/backend.h"
#include "ops/calls.h"
#include "ops/layer_fixture.h"

#include <stdio.h>
#include <stdlib.h>

void gradients_free(gradients *g)
{
    float *arrays[] = {g->dq, g->dk, g->dv, g->d_sink, g->loss, g->dq_index, g->dk_index, g->mass};
    for (size_t i = 0; i < sizeof(arrays) / sizeof(arrays[0]); i++) free(arrays[i]);
    memset(g, 0, sizeof(*g));
}

msa_context *gradient_context(int32_t i)
{
    msa_context *ctx;
    int32_t n_before = 0;
    for (int32_t c = 0; (ctx = attention_context(c)) != NULL; c++) {
        if (!ctx->backend->attend_backward) continue;
        if (n_before++ == i) return ctx;
    }
    if (n_before == 0) {
        printf("skipped: backend %s has no gradients\n", test_backend());
        exit(77);
    }
    return NULL;
}

/* ---- inputs ---------------------------------------------------------------------------------- */

msa_tensor tensor_of(const problem *p, msa_dtype dtype, int64_t heads, int64_t dim,
                     const float *values)
{
    int64_t pad = p->spec.oversized ? 3 : 0, last = dim ? dim : heads;
    msa_tensor t = dim ? poisoned_tensor(dtype, 3, p->n_tokens, heads, dim, 1, pad)
                       : poisoned_tensor(dtype, 2, p->n_tokens, heads, 1, 1, pad);
    int64_t n_rows = dim ? p->n_tokens * heads : p->n_tokens;
    for (int64_t row = 0; row < n_rows; row++) {
        for (int64_t d = 0; d < last; d++) {
            store_f32(t.data, dtype, row * (last + pad) + d, values[row * last + d]);
        }
    }
    return t;
}

incoming incoming_create(const problem *p, uint64_t seed)
{
    int64_t n = p->n_tokens * p->spec.n_q_heads * p->spec.head_dim;
    float *values = malloc((size_t)(n + 1) * sizeof(float));
    incoming d_out = {malloc((size_t)(n + 1) * sizeof(double)), {0}};
    assert_true(values && d_out.values);
    for (int64_t i = 0; i < n; i++) {
        uint32_t words[4];
        float rounded;
        msa__philox(seed, (uint64_t)i, 7, words);
        store_f32(&rounded, p->spec.q_dtype, 0, (float)(int32_t)words[0] * 0x1p-31f);
        values[i] = load_f32(&rounded, p->spec.q_dtype, 0);
        d_out.values[i] = (double)values[i];
    }
    d_out.tensor = tensor_of(p, p->spec.q_dtype, p->spec.n_q_heads, p->spec.head_dim, values);
    free(values);
    return d_out;
}

void incoming_free(incoming *d_out)
{
    free(d_out->values);
    free(d_out->tensor.data);
}

/* ---- outputs --------------------------------------------------------------------------------- */

static msa_tensor new_rows(const problem *p, msa_dtype dtype, int64_t n_rows, int64_t heads,
                           int64_t dim)
{
    return poisoned_tensor(dtype, 3, n_rows, heads, dim, 1, p->spec.oversized ? 3 : 0);
}

/* Outputs that are added to start as 1. */
static void fill_ones(const msa_tensor *t)
{
    for (int64_t i = 0; i < t->shape[0]; i++) {
        for (int64_t h = 0; h < t->shape[1]; h++) {
            for (int64_t d = 0; d < t->shape[2]; d++) {
                store_f32(t->data, t->dtype, i * t->stride[0] + h * t->stride[1] + d, 1);
            }
        }
    }
}

/* Rows of keys: those of no sequence, behind the last one, must have got zeros (or kept a 1). */
static float *take_key_rows(const problem *p, msa_tensor *t, float unused)
{
    int64_t row = t->n_dims == 3 ? t->shape[1] * t->shape[2] : t->shape[1];
    int64_t n_rows = t->shape[0];
    float *values = take_output(t);
    for (int64_t i = p->n_keys * row; i < n_rows * row; i++) {
        if (values[i] != unused) fail_msg("a row of no sequence is %g", (double)values[i]);
    }
    return values;
}

/* ---- reverse index --------------------------------------------------------------------------- */

msa_reverse_index run_reverse_index(msa_context *ctx, const problem *p, const msa_tensor *blocks)
{
    int64_t groups = blocks->shape[1], n_rows = p->kv.k.shape[0];
    msa_reverse_index_args args;
    msa_reverse_index_args_init(&args);
    args.blocks = *blocks;
    args.kv.cu_seqlens_k = p->kv.cu_seqlens_k;
    args.kv.kv_lens = p->kv.kv_lens;
    args.kv.n_seqs = p->kv.n_seqs;
    args.kv.k.shape[0] = n_rows;
    args.cu_seqlens_q = p->cu_q;
    args.block_size = p->spec.block_size;
    args.index.offsets = poisoned_tensor(MSA_DTYPE_I32, 2, groups,
                                         n_rows / p->spec.block_size + p->kv.n_seqs + 1, 1, 1, 2);
    args.index.queries =
        poisoned_tensor(MSA_DTYPE_I32, 2, groups, p->n_tokens * blocks->shape[2], 1, 1, 2);
    msa_plan plan;
    msa_plan_init(&plan);
    EXPECT_OK(msa_reverse_index_plan(ctx, &args, &plan));
    guarded g = guarded_begin(&plan);
    EXPECT_OK(call_reverse_index(ctx, &plan, &args, g.data, g.bytes));
    guarded_end(&g);
    return args.index;
}

/* ---- attention ------------------------------------------------------------------------------- */

/* Results of a forward call as tensors. */
typedef struct forward {
    msa_tensor out, lse;
} forward;

static forward forward_tensors(const problem *p, results *r)
{
    forward f;
    f.out = tensor_of(p, p->spec.q_dtype, p->spec.n_q_heads, p->spec.head_dim, r->out);
    f.lse = tensor_of(p, MSA_DTYPE_F32, p->spec.n_q_heads, 0, r->lse);
    results_free(r);
    return f;
}

static void forward_free(forward *f)
{
    free(f->out.data);
    free(f->lse.data);
}

static msa_kv_view without_index_keys(const problem *p)
{
    msa_kv_view kv = p->kv;
    kv.k_index = (msa_tensor){0};
    return kv;
}

static void call_once(msa_context *ctx, const msa_attend_backward_args *args)
{
    msa_plan plan;
    msa_plan_init(&plan);
    EXPECT_OK(msa_attend_backward_plan(ctx, args, &plan));
    guarded w = guarded_begin(&plan);
    EXPECT_OK(call_attend_backward(ctx, &plan, args, w.data, w.bytes));
    guarded_end(&w);
}

/* Heads h, G + h, … of every group in call h, with an lse of their own. */
static void call_by_heads(msa_context *ctx, const msa_attend_backward_args *whole)
{
    int64_t n_tokens = whole->q.shape[0], groups = whole->blocks.shape[1];
    int64_t group = whole->q.shape[1] / groups;
    float *lse = malloc((size_t)(n_tokens * groups + 1) * sizeof(float));
    assert_non_null(lse);
    for (int64_t h = 0; h < group; h++) {
        msa_attend_backward_args args = *whole;
        args.q = msa__every_nth_head(whole->q, h, group);
        args.out = msa__every_nth_head(whole->out, h, group);
        args.d_out = msa__every_nth_head(whole->d_out, h, group);
        args.dq = msa__every_nth_head(whole->dq, h, group);
        for (int64_t i = 0; i < n_tokens * groups; i++) {
            lse[i] =
                ((const float *)
                     whole->lse.data)[i / groups * whole->lse.stride[0] + i % groups * group + h];
        }
        args.lse = msa_tensor_make(lse, MSA_DTYPE_F32, 2, n_tokens, groups, 0, 0);
        args.accumulate |= h > 0;
        call_once(ctx, &args);
    }
    free(lse);
}

void run_attend_backward(msa_context *ctx, const problem *p, const int32_t *rows,
                         const incoming *d_out, const gradient_options *options, gradients *g)
{
    const problem_spec *spec = &p->spec;
    results r;
    run_attend(ctx, p, rows, &r);
    forward f = forward_tensors(p, &r);
    msa_attend_backward_args args;
    msa_attend_backward_args_init(&args);
    args.q = p->q_tensor;
    args.kv = without_index_keys(p);
    args.cu_seqlens_q = p->cu_q;
    args.blocks = rows_tensor(p, rows, spec->topk);
    args.index = run_reverse_index(ctx, p, &args.blocks);
    args.block_size = spec->block_size;
    args.out = f.out;
    args.lse = f.lse;
    args.d_out = d_out->tensor;
    args.dq = new_rows(p, options->dtype, p->n_tokens, spec->n_q_heads, spec->head_dim);
    args.dk = new_rows(p, options->dtype, p->kv.k.shape[0], spec->n_kv_heads, spec->head_dim);
    args.dv = new_rows(p, options->dtype, p->kv.k.shape[0], spec->n_kv_heads, spec->head_dim);
    args.accumulate = options->accumulate;
    msa_tensor *outputs[] = {&args.dq, &args.dk, &args.dv};
    for (int i = 0; i < 3 && options->accumulate; i++) fill_ones(outputs[i]);
    if (options->by_heads) {
        call_by_heads(ctx, &args);
    } else {
        call_once(ctx, &args);
    }
    memset(g, 0, sizeof(*g));
    g->dq = take_output(&args.dq);
    g->dk = take_key_rows(p, &args.dk, (float)options->accumulate);
    g->dv = take_key_rows(p, &args.dv, (float)options->accumulate);
    free(args.blocks.data);
    free(args.index.offsets.data);
    free(args.index.queries.data);
    forward_free(&f);
}

void run_dense_backward(msa_context *ctx, const problem *p, const incoming *d_out,
                        const gradient_options *options, gradients *g)
{
    const problem_spec *spec = &p->spec;
    msa_dense_attend_args forward_args = dense_args(p);
    forward_args.window = options->window;
    forward_args.n_sink_tokens = options->n_sink_tokens;
    forward_args.sink_logit = options->sink_logits;
    results r;
    run_dense(ctx, p, &forward_args, &r);
    forward f = forward_tensors(p, &r);
    msa_dense_attend_backward_args args;
    msa_dense_attend_backward_args_init(&args);
    args.q = p->q_tensor;
    args.kv = without_index_keys(p);
    args.cu_seqlens_q = p->cu_q;
    args.window = options->window;
    args.n_sink_tokens = options->n_sink_tokens;
    args.sink_logit = options->sink_logits;
    args.out = f.out;
    args.lse = f.lse;
    args.d_out = d_out->tensor;
    args.dq = new_rows(p, options->dtype, p->n_tokens, spec->n_q_heads, spec->head_dim);
    args.dk = new_rows(p, options->dtype, p->kv.k.shape[0], spec->n_kv_heads, spec->head_dim);
    args.dv = new_rows(p, options->dtype, p->kv.k.shape[0], spec->n_kv_heads, spec->head_dim);
    if (options->sink_logits) {
        args.d_sink_logit = poisoned_tensor(MSA_DTYPE_F32, 1, spec->n_q_heads, 1, 1, 1, 0);
        memset(args.d_sink_logit.data, 0, (size_t)spec->n_q_heads * sizeof(float));
    }
    msa_plan plan;
    msa_plan_init(&plan);
    EXPECT_OK(msa_dense_attend_backward_plan(ctx, &args, &plan));
    guarded w = guarded_begin(&plan);
    EXPECT_OK(call_dense_attend_backward(ctx, &plan, &args, w.data, w.bytes));
    guarded_end(&w);
    memset(g, 0, sizeof(*g));
    g->dq = take_output(&args.dq);
    g->dk = take_key_rows(p, &args.dk, 0);
    g->dv = take_key_rows(p, &args.dv, 0);
    if (options->sink_logits) g->d_sink = take_output(&args.d_sink_logit);
    forward_free(&f);
}

/* ---- index branch ---------------------------------------------------------------------------- */

void run_index_kl(msa_context *ctx, const problem *p, const int32_t *rows,
                  const gradient_options *options, gradients *g)
{
    const problem_spec *spec = &p->spec;
    results r, selected;
    if (rows) {
        run_attend(ctx, p, rows, &r);
    } else {
        run_dense(ctx, p, NULL, &r);
    }
    forward f = forward_tensors(p, &r);
    msa_index_kl_args args;
    msa_index_kl_args_init(&args);
    args.q = p->q_tensor;
    args.q_index = p->q_index_tensor;
    args.kv = p->kv;
    args.kv.v = (msa_tensor){0};
    args.cu_seqlens_q = p->cu_q;
    args.block_size = spec->block_size;
    args.weight = options->weight;
    args.lse = f.lse;
    if (rows) {
        args.blocks = rows_tensor(p, rows, spec->topk);
        args.index = run_reverse_index(ctx, p, &args.blocks);
    }
    if (rows && !options->without_index_lse) { /* rows are those of a select */
        run_select(ctx, p, &selected);
        args.index_lse = tensor_of(p, MSA_DTYPE_F32, spec->n_kv_heads, 0, selected.index_lse);
        results_free(&selected);
    }
    args.loss = poisoned_tensor(MSA_DTYPE_F32, 2, p->n_tokens, spec->n_kv_heads, 1, 1,
                                spec->oversized ? 3 : 0);
    args.dq_index = new_rows(p, options->dtype, p->n_tokens, spec->n_kv_heads, spec->index_dim);
    args.dk_index = poisoned_tensor(options->dtype, 2, p->kv.k_index.shape[0], spec->index_dim, 1,
                                    1, spec->oversized ? 3 : 0);
    msa_plan plan;
    msa_plan_init(&plan);
    EXPECT_OK(msa_index_kl_plan(ctx, &args, &plan));
    guarded w = guarded_begin(&plan);
    EXPECT_OK(call_index_kl(ctx, &plan, &args, w.data, w.bytes));
    guarded_end(&w);
    memset(g, 0, sizeof(*g));
    g->loss = take_output(&args.loss);
    g->dq_index = take_output(&args.dq_index);
    g->dk_index = take_key_rows(p, &args.dk_index, 0);
    free(args.blocks.data);
    free(args.index.offsets.data);
    free(args.index.queries.data);
    free(args.index_lse.data);
    forward_free(&f);
}

void run_block_mass(msa_context *ctx, const problem *p, gradients *g)
{
    results r;
    run_dense(ctx, p, NULL, &r);
    forward f = forward_tensors(p, &r);
    msa_block_mass_args args;
    msa_block_mass_args_init(&args);
    args.q = p->q_tensor;
    args.kv = without_index_keys(p);
    args.kv.v = (msa_tensor){0};
    args.cu_seqlens_q = p->cu_q;
    args.block_size = p->spec.block_size;
    args.lse = f.lse;
    args.mass = poisoned_tensor(MSA_DTYPE_F32, 3, p->n_tokens, p->spec.n_kv_heads, p->n_blocks, 1,
                                p->spec.oversized ? 3 : 0);
    msa_plan plan;
    msa_plan_init(&plan);
    EXPECT_OK(msa_block_mass_plan(ctx, &args, &plan));
    guarded w = guarded_begin(&plan);
    EXPECT_OK(call_block_mass(ctx, &plan, &args, w.data, w.bytes));
    guarded_end(&w);
    memset(g, 0, sizeof(*g));
    g->mass = take_output(&args.mass);
    forward_free(&f);
}
