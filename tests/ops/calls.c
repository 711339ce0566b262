/* See calls.h. */
#include "ops/calls.h"

#include "harness/cmocka_all.h"
#include "msa/graph.h"
#include "msa/memory.h"

#include <stdlib.h>

/* ---- copies ---------------------------------------------------------------------------------- */

typedef enum copy_role { INPUT, OUTPUT, SCRATCH } copy_role;

typedef struct copy {
    unsigned char *host;
    size_t bytes;
    copy_role role;
    void *memory; /* holds the copy at the original's place between two multiples of 64 */
    unsigned char *device;
    unsigned char *result; /* what the direct call left in an output */
} copy;

typedef struct stage {
    msa_context *ctx;
    copy *copies;
    int n, room;
} stage;

static size_t place_of(const copy *c)
{
    return (size_t)((uintptr_t)c->host % 64);
}

static void *stage_bytes(stage *s, const void *host, size_t bytes, copy_role role)
{
    if (!host) return NULL;
    for (int i = 0; i < s->n; i++) { /* an alias stays one */
        if (s->copies[i].host != host) continue;
        if (role == OUTPUT) s->copies[i].role = OUTPUT;
        return s->copies[i].device;
    }
    if (s->n == s->room) {
        s->room = s->room ? 2 * s->room : 32;
        s->copies = realloc(s->copies, (size_t)s->room * sizeof(copy));
        assert_non_null(s->copies);
    }
    copy *c = &s->copies[s->n++];
    *c = (copy){(unsigned char *)(uintptr_t)host, bytes, role, NULL, NULL, NULL};
    EXPECT_OK(msa_memory_alloc(s->ctx, bytes + place_of(c), &c->memory));
    c->device = (unsigned char *)c->memory + place_of(c);
    /* MSA_TEST_RAW_WORKSPACE leaves it to a tool that watches for uninitialised memory. */
    if (role != SCRATCH || !getenv("MSA_TEST_RAW_WORKSPACE")) {
        EXPECT_OK(msa_memory_upload(s->ctx, c->device, host, bytes));
    }
    return c->device;
}

/* From the first element to the last; nothing where a shape is wrong, as a check will say. */
static size_t tensor_bytes(const msa_tensor *t)
{
    int64_t n = 1;
    if (t->n_dims < 0 || t->n_dims > MSA_MAX_DIMS) return 0;
    for (int32_t i = 0; i < t->n_dims; i++) {
        if (t->shape[i] <= 0 || t->stride[i] < 0) return 0;
        n += (t->shape[i] - 1) * t->stride[i];
    }
    return (size_t)n * msa_dtype_bytes(t->dtype);
}

static void stage_tensor(stage *s, msa_tensor *t, copy_role role)
{
    t->data = stage_bytes(s, t->data, tensor_bytes(t), role);
}

static const int32_t *stage_ints(stage *s, const int32_t *array, int64_t n)
{
    return stage_bytes(s, array, (size_t)n * sizeof(int32_t), INPUT);
}

static void stage_view(stage *s, msa_kv_view *kv, copy_role role)
{
    stage_tensor(s, &kv->k, role);
    stage_tensor(s, &kv->v, role);
    stage_tensor(s, &kv->k_index, role);
    kv->page_table = stage_ints(s, kv->page_table, kv->n_seqs * kv->page_table_stride);
    kv->cu_seqlens_k = stage_ints(s, kv->cu_seqlens_k, kv->n_seqs + 1);
    kv->kv_lens = stage_ints(s, kv->kv_lens, kv->n_seqs);
}

static void stage_weight(stage *s, msa_weight *weight)
{
    stage_tensor(s, &weight->w, INPUT);
    stage_tensor(s, &weight->scales, INPUT);
}

/* ---- two runs -------------------------------------------------------------------------------- */

static void download(const stage *s, const copy *c, unsigned char *bytes)
{
    EXPECT_OK(msa_memory_download(s->ctx, bytes, c->device, c->bytes));
}

/* After the direct call: keep the outputs, look at the inputs, restore what was there before. */
static void stage_keep_results(stage *s)
{
    for (int i = 0; i < s->n; i++) {
        copy *c = &s->copies[i];
        if (c->role == SCRATCH) continue;
        c->result = malloc(c->bytes + 1);
        assert_non_null(c->result);
        download(s, c, c->result);
        if (c->role == OUTPUT) {
            EXPECT_OK(msa_memory_upload(s->ctx, c->device, c->host, c->bytes));
        } else if (memcmp(c->result, c->host, c->bytes) != 0) {
            fail_msg("an input of %zu bytes was written", c->bytes);
        }
    }
}

/* After the recorded call: the same bytes, which become the caller's. */
static void stage_take_results(stage *s)
{
    for (int i = 0; i < s->n; i++) {
        copy *c = &s->copies[i];
        if (c->role != OUTPUT) continue;
        download(s, c, c->host);
        for (size_t n = 0; n < c->bytes; n++) {
            if (c->host[n] != c->result[n]) {
                fail_msg("byte %zu of an output of %zu differs when recorded", n, c->bytes);
            }
        }
    }
}

static void stage_free(stage *s)
{
    for (int i = 0; i < s->n; i++) {
        copy *c = &s->copies[i];
        msa_memory_free(s->ctx, c->memory, c->bytes + place_of(c));
        free(c->result);
    }
    free(s->copies);
}

/* Make the call, then again from a recording; `call` is an expression. */
#define RUN_TWICE(s, status, call)                                                                 \
    do {                                                                                           \
        (status) = (call);                                                                         \
        if ((status) == MSA_OK) {                                                                  \
            msa_graph *graph_ = NULL;                                                              \
            EXPECT_OK(msa_context_synchronize((s)->ctx));                                          \
            stage_keep_results(s);                                                                 \
            EXPECT_OK(msa_graph_begin((s)->ctx));                                                  \
            EXPECT_OK(call);                                                                       \
            EXPECT_OK(msa_graph_end((s)->ctx, &graph_));                                           \
            EXPECT_OK(msa_graph_launch((s)->ctx, graph_));                                         \
            EXPECT_OK(msa_context_synchronize((s)->ctx));                                          \
            msa_graph_destroy((s)->ctx, graph_);                                                   \
            stage_take_results(s);                                                                 \
        }                                                                                          \
        stage_free(s);                                                                             \
    } while (0)

/* ---- the operators --------------------------------------------------------------------------- */

/* A function call_X(ctx, args) that stages `a`, a copy of the arguments, through `s`. */
#define CALL(op, ...)                                                                              \
    msa_status call_##op(msa_context *ctx, const msa_##op##_args *args)                            \
    {                                                                                              \
        if (!msa_context_uses_device_memory(ctx)) return msa_##op(ctx, args);                      \
        stage staged = {ctx, NULL, 0, 0}, *s = &staged;                                            \
        msa_##op##_args copied = *args, *a = &copied;                                              \
        msa_status status;                                                                         \
        __VA_ARGS__                                                                                \
        RUN_TWICE(s, status, msa_##op(ctx, a));                                                    \
        return status;                                                                             \
    }

/* The same with a plan and a workspace. */
#define CALL_PLANNED(op, ...)                                                                      \
    msa_status call_##op(msa_context *ctx, const msa_plan *plan, const msa_##op##_args *args,      \
                         void *workspace, size_t workspace_bytes)                                  \
    {                                                                                              \
        if (!msa_context_uses_device_memory(ctx)) {                                                \
            return msa_##op(ctx, plan, args, workspace, workspace_bytes);                          \
        }                                                                                          \
        stage staged = {ctx, NULL, 0, 0}, *s = &staged;                                            \
        msa_##op##_args copied = *args, *a = &copied;                                              \
        msa_status status;                                                                         \
        __VA_ARGS__                                                                                \
        workspace = stage_bytes(s, workspace, workspace_bytes, SCRATCH);                           \
        RUN_TWICE(s, status, msa_##op(ctx, plan, a, workspace, workspace_bytes));                  \
        return status;                                                                             \
    }

static void stage_select(stage *s, msa_select_args *a)
{
    stage_tensor(s, &a->q_index, INPUT);
    a->cu_seqlens_q = stage_ints(s, a->cu_seqlens_q, a->kv.n_seqs + 1);
    stage_view(s, &a->kv, INPUT);
    stage_tensor(s, &a->blocks, OUTPUT);
    stage_tensor(s, &a->block_scores, OUTPUT);
    stage_tensor(s, &a->index_lse, OUTPUT);
    stage_tensor(s, &a->index8.keys, INPUT);
    stage_tensor(s, &a->index8.bounds, INPUT);
    stage_tensor(s, &a->n_rescored, OUTPUT);
}

static void stage_attend(stage *s, msa_attend_args *a)
{
    stage_tensor(s, &a->q, INPUT);
    a->cu_seqlens_q = stage_ints(s, a->cu_seqlens_q, a->kv.n_seqs + 1);
    stage_view(s, &a->kv, INPUT);
    stage_tensor(s, &a->blocks, INPUT);
    stage_tensor(s, &a->out, OUTPUT);
    stage_tensor(s, &a->lse, OUTPUT);
}

CALL_PLANNED(select, { stage_select(s, a); })

CALL(block_topk, {
    stage_tensor(s, &a->scores, INPUT);
    a->n_visible = stage_ints(s, a->n_visible, a->scores.shape[0]);
    stage_tensor(s, &a->blocks, OUTPUT);
})

CALL_PLANNED(attend, { stage_attend(s, a); })

msa_status call_select_attend(msa_context *ctx, const msa_plan *plan,
                              const msa_select_attend_args *args, void *workspace,
                              size_t workspace_bytes)
{
    if (!msa_context_uses_device_memory(ctx))
        return msa_select_attend(ctx, plan, args, workspace, workspace_bytes);
    stage staged = {ctx, NULL, 0, 0}, *s = &staged;
    msa_select_args select = *args->select;
    msa_attend_args attend = *args->attend;
    msa_select_attend_args copied = *args;
    msa_status status;
    stage_select(s, &select);
    stage_attend(s, &attend);
    copied.select = &select;
    copied.attend = &attend;
    workspace = stage_bytes(s, workspace, workspace_bytes, SCRATCH);
    RUN_TWICE(s, status, msa_select_attend(ctx, plan, &copied, workspace, workspace_bytes));
    return status;
}

CALL_PLANNED(dense_attend, {
    stage_tensor(s, &a->q, INPUT);
    a->cu_seqlens_q = stage_ints(s, a->cu_seqlens_q, a->kv.n_seqs + 1);
    stage_view(s, &a->kv, INPUT);
    a->sink_logit = stage_bytes(s, a->sink_logit, (size_t)a->q.shape[1] * sizeof(float), INPUT);
    stage_tensor(s, &a->out, OUTPUT);
    stage_tensor(s, &a->lse, OUTPUT);
})

CALL(attend_merge, {
    stage_tensor(s, &a->out_a, INPUT);
    stage_tensor(s, &a->lse_a, INPUT);
    stage_tensor(s, &a->out_b, INPUT);
    stage_tensor(s, &a->lse_b, INPUT);
    stage_tensor(s, &a->out, OUTPUT);
    stage_tensor(s, &a->lse, OUTPUT);
})

CALL(kv_append, {
    stage_tensor(s, &a->k, INPUT);
    stage_tensor(s, &a->v, INPUT);
    stage_tensor(s, &a->k_index, INPUT);
    a->cu_seqlens_q = stage_ints(s, a->cu_seqlens_q, a->kv.n_seqs + 1);
    stage_view(s, &a->kv, OUTPUT);
})

CALL(index_quantize, {
    a->cu_seqlens_q = stage_ints(s, a->cu_seqlens_q, a->kv.n_seqs + 1);
    stage_view(s, &a->kv, INPUT);
    stage_tensor(s, &a->index8.keys, OUTPUT);
    stage_tensor(s, &a->index8.bounds, OUTPUT);
})

CALL(embed, {
    stage_tensor(s, &a->table, INPUT);
    a->ids = stage_ints(s, a->ids, a->out.shape[0]);
    stage_tensor(s, &a->out, OUTPUT);
})

CALL(rmsnorm, {
    stage_tensor(s, &a->x, INPUT);
    stage_tensor(s, &a->weight, INPUT);
    stage_tensor(s, &a->out, OUTPUT);
})

CALL(rope, {
    stage_tensor(s, &a->x, INPUT);
    a->positions = stage_ints(s, a->positions, a->x.shape[0]);
    a->inv_freq = stage_bytes(s, a->inv_freq, (size_t)a->n_freqs * sizeof(float), INPUT);
    stage_tensor(s, &a->out, OUTPUT);
})

CALL_PLANNED(linear, {
    stage_tensor(s, &a->x, INPUT);
    stage_weight(s, &a->weight);
    stage_tensor(s, &a->out, OUTPUT);
})

CALL(swiglu, {
    stage_tensor(s, &a->gate, INPUT);
    stage_tensor(s, &a->up, INPUT);
    stage_tensor(s, &a->out, OUTPUT);
})

CALL(router, {
    size_t n = (size_t)(a->x.shape[0] * a->topk);
    stage_tensor(s, &a->x, INPUT);
    stage_tensor(s, &a->weight, INPUT);
    stage_tensor(s, &a->bias, INPUT);
    a->ids = stage_bytes(s, a->ids, n * sizeof(int32_t), OUTPUT);
    a->weights = stage_bytes(s, a->weights, n * sizeof(float), OUTPUT);
})

CALL(window_blocks, {
    a->positions = stage_ints(s, a->positions, a->blocks.shape[0]);
    stage_tensor(s, &a->blocks, OUTPUT);
})

CALL(block_means, {
    a->cu_seqlens_q = stage_ints(s, a->cu_seqlens_q, a->kv.n_seqs + 1);
    stage_view(s, &a->kv, INPUT);
    stage_tensor(s, &a->means, OUTPUT);
})

CALL_PLANNED(moba_select, {
    stage_tensor(s, &a->q, INPUT);
    a->cu_seqlens_q = stage_ints(s, a->cu_seqlens_q, a->kv.n_seqs + 1);
    stage_view(s, &a->kv, INPUT);
    stage_tensor(s, &a->means, INPUT);
    stage_tensor(s, &a->blocks, OUTPUT);
})

CALL_PLANNED(lightning, {
    stage_tensor(s, &a->q, INPUT);
    stage_tensor(s, &a->k, INPUT);
    stage_tensor(s, &a->v, INPUT);
    a->cu_seqlens_q = stage_ints(s, a->cu_seqlens_q, a->n_seqs + 1);
    a->slopes = stage_bytes(s, a->slopes, (size_t)a->q.shape[1] * sizeof(float), INPUT);
    stage_tensor(s, &a->states, OUTPUT);
    a->state_in = stage_ints(s, a->state_in, a->n_seqs);
    a->state_out = stage_ints(s, a->state_out, a->n_seqs);
    stage_tensor(s, &a->out, OUTPUT);
})

CALL_PLANNED(lightning_backward, {
    stage_tensor(s, &a->q, INPUT);
    stage_tensor(s, &a->k, INPUT);
    stage_tensor(s, &a->v, INPUT);
    a->cu_seqlens_q = stage_ints(s, a->cu_seqlens_q, a->n_seqs + 1);
    a->slopes = stage_bytes(s, a->slopes, (size_t)a->q.shape[1] * sizeof(float), INPUT);
    stage_tensor(s, &a->d_out, INPUT);
    stage_tensor(s, &a->dq, OUTPUT);
    stage_tensor(s, &a->dk, OUTPUT);
    stage_tensor(s, &a->dv, OUTPUT);
})

CALL(sigmoid_gate, {
    stage_tensor(s, &a->x, INPUT);
    stage_tensor(s, &a->gate, INPUT);
    stage_tensor(s, &a->out, OUTPUT);
})

CALL(sigmoid_gate_backward, {
    stage_tensor(s, &a->x, INPUT);
    stage_tensor(s, &a->gate, INPUT);
    stage_tensor(s, &a->d_out, INPUT);
    stage_tensor(s, &a->dx, OUTPUT);
    stage_tensor(s, &a->d_gate, OUTPUT);
})

CALL_PLANNED(token_select, {
    stage_tensor(s, &a->q_index, INPUT);
    stage_tensor(s, &a->weights, INPUT);
    a->cu_seqlens_q = stage_ints(s, a->cu_seqlens_q, a->kv.n_seqs + 1);
    stage_view(s, &a->kv, INPUT);
    stage_tensor(s, &a->tokens, OUTPUT);
})

CALL_PLANNED(token_attend, {
    stage_tensor(s, &a->q, INPUT);
    a->cu_seqlens_q = stage_ints(s, a->cu_seqlens_q, a->kv.n_seqs + 1);
    stage_view(s, &a->kv, INPUT);
    stage_tensor(s, &a->tokens, INPUT);
    stage_tensor(s, &a->out, OUTPUT);
    stage_tensor(s, &a->lse, OUTPUT);
})

CALL_PLANNED(token_attend_backward, {
    stage_tensor(s, &a->q, INPUT);
    stage_view(s, &a->kv, INPUT);
    a->cu_seqlens_q = stage_ints(s, a->cu_seqlens_q, a->kv.n_seqs + 1);
    stage_tensor(s, &a->tokens, INPUT);
    stage_tensor(s, &a->out, INPUT);
    stage_tensor(s, &a->lse, INPUT);
    stage_tensor(s, &a->d_out, INPUT);
    stage_tensor(s, &a->dq, OUTPUT);
    stage_tensor(s, &a->dk, OUTPUT);
    stage_tensor(s, &a->dv, OUTPUT);
})

CALL_PLANNED(token_kl, {
    stage_tensor(s, &a->q, INPUT);
    stage_tensor(s, &a->q_index, INPUT);
    stage_tensor(s, &a->weights, INPUT);
    stage_view(s, &a->kv, INPUT);
    a->cu_seqlens_q = stage_ints(s, a->cu_seqlens_q, a->kv.n_seqs + 1);
    stage_tensor(s, &a->tokens, INPUT);
    stage_tensor(s, &a->lse, INPUT);
    stage_tensor(s, &a->loss, OUTPUT);
    stage_tensor(s, &a->dq_index, OUTPUT);
    stage_tensor(s, &a->d_weights, OUTPUT);
    stage_tensor(s, &a->dk_index, OUTPUT);
})

CALL(layernorm, {
    stage_tensor(s, &a->x, INPUT);
    stage_tensor(s, &a->weight, INPUT);
    stage_tensor(s, &a->bias, INPUT);
    stage_tensor(s, &a->out, OUTPUT);
})

CALL_PLANNED(layernorm_backward, {
    stage_tensor(s, &a->x, INPUT);
    stage_tensor(s, &a->weight, INPUT);
    stage_tensor(s, &a->d_out, INPUT);
    stage_tensor(s, &a->dx, OUTPUT);
    stage_tensor(s, &a->d_weight, OUTPUT);
    stage_tensor(s, &a->d_bias, OUTPUT);
})

CALL_PLANNED(embed_backward, {
    a->ids = stage_ints(s, a->ids, a->d_out.shape[0]);
    stage_tensor(s, &a->d_out, INPUT);
    stage_tensor(s, &a->d_table, OUTPUT);
})

CALL_PLANNED(rmsnorm_backward, {
    stage_tensor(s, &a->x, INPUT);
    stage_tensor(s, &a->weight, INPUT);
    stage_tensor(s, &a->d_out, INPUT);
    stage_tensor(s, &a->dx, OUTPUT);
    stage_tensor(s, &a->d_weight, OUTPUT);
})

CALL_PLANNED(linear_backward, {
    stage_tensor(s, &a->x, INPUT);
    stage_weight(s, &a->weight);
    stage_tensor(s, &a->d_out, INPUT);
    stage_tensor(s, &a->dx, OUTPUT);
    stage_tensor(s, &a->d_weight, OUTPUT);
})

CALL(swiglu_backward, {
    stage_tensor(s, &a->gate, INPUT);
    stage_tensor(s, &a->up, INPUT);
    stage_tensor(s, &a->d_out, INPUT);
    stage_tensor(s, &a->d_gate, OUTPUT);
    stage_tensor(s, &a->d_up, OUTPUT);
})

CALL_PLANNED(router_backward, {
    int64_t n = a->x.shape[0] * a->topk;
    stage_tensor(s, &a->x, INPUT);
    stage_tensor(s, &a->weight, INPUT);
    a->ids = stage_ints(s, a->ids, n);
    a->d_weights = stage_bytes(s, a->d_weights, (size_t)n * sizeof(float), INPUT);
    stage_tensor(s, &a->dx, OUTPUT);
    stage_tensor(s, &a->d_weight, OUTPUT);
})

CALL(cross_entropy, {
    stage_tensor(s, &a->logits, INPUT);
    a->targets = stage_ints(s, a->targets, a->logits.shape[0]);
    stage_tensor(s, &a->loss, OUTPUT);
    stage_tensor(s, &a->d_logits, OUTPUT);
})

CALL(adamw, {
    size_t bytes = (size_t)a->n * sizeof(float);
    a->parameters = stage_bytes(s, a->parameters, bytes, OUTPUT);
    a->gradient = stage_bytes(s, a->gradient, bytes, INPUT);
    a->m = stage_bytes(s, a->m, bytes, OUTPUT);
    a->v = stage_bytes(s, a->v, bytes, OUTPUT);
    stage_tensor(s, &a->copy, OUTPUT);
})

CALL_PLANNED(sum_squares, {
    a->x = stage_bytes(s, a->x, (size_t)a->n * sizeof(float), INPUT);
    a->out = stage_bytes(s, a->out, sizeof(double), OUTPUT);
})

/* The MLPs are host structs that hold device tensors. */
static msa_mlp_weights *stage_mlps(stage *s, const msa_mlp_weights *mlps, int32_t n)
{
    if (!mlps || n <= 0) return NULL;
    msa_mlp_weights *staged = malloc((size_t)n * sizeof(*staged));
    assert_non_null(staged);
    for (int32_t i = 0; i < n; i++) {
        staged[i] = mlps[i];
        stage_weight(s, &staged[i].gate);
        stage_weight(s, &staged[i].up);
        stage_weight(s, &staged[i].down);
    }
    return staged;
}

msa_status call_moe(msa_context *ctx, const msa_plan *plan, const msa_moe_args *args,
                    void *workspace, size_t workspace_bytes)
{
    if (!msa_context_uses_device_memory(ctx)) {
        return msa_moe(ctx, plan, args, workspace, workspace_bytes);
    }
    stage s = {ctx, NULL, 0, 0};
    msa_moe_args a = *args;
    int64_t n_choices = a.x.shape[0] * a.topk;
    msa_status status;
    stage_tensor(&s, &a.x, INPUT);
    a.ids = stage_ints(&s, a.ids, n_choices);
    a.weights = stage_bytes(&s, a.weights, (size_t)n_choices * sizeof(float), INPUT);
    msa_mlp_weights *experts = stage_mlps(&s, a.experts, a.n_experts);
    msa_mlp_weights *shared = stage_mlps(&s, a.shared, 1);
    a.experts = experts;
    a.shared = shared;
    stage_tensor(&s, &a.out, OUTPUT);
    workspace = stage_bytes(&s, workspace, workspace_bytes, SCRATCH);
    RUN_TWICE(&s, status, msa_moe(ctx, plan, &a, workspace, workspace_bytes));
    free(experts);
    free(shared);
    return status;
}

/* ---- gradients of attention ------------------------------------------------------------------ */

static void stage_index(stage *s, msa_reverse_index *index, copy_role role)
{
    stage_tensor(s, &index->offsets, role);
    stage_tensor(s, &index->queries, role);
}

msa_status call_reverse_index(msa_context *ctx, const msa_plan *plan,
                              const msa_reverse_index_args *args, void *workspace,
                              size_t workspace_bytes)
{
    if (!msa_context_uses_device_memory(ctx)) {
        return msa_reverse_index_build(ctx, plan, args, workspace, workspace_bytes);
    }
    stage staged = {ctx, NULL, 0, 0}, *s = &staged;
    msa_reverse_index_args copied = *args, *a = &copied;
    msa_status status;
    stage_tensor(s, &a->blocks, INPUT);
    a->cu_seqlens_q = stage_ints(s, a->cu_seqlens_q, a->kv.n_seqs + 1);
    stage_view(s, &a->kv, INPUT);
    stage_index(s, &a->index, OUTPUT);
    workspace = stage_bytes(s, workspace, workspace_bytes, SCRATCH);
    RUN_TWICE(s, status, msa_reverse_index_build(ctx, plan, a, workspace, workspace_bytes));
    return status;
}

CALL_PLANNED(attend_backward, {
    stage_tensor(s, &a->q, INPUT);
    stage_view(s, &a->kv, INPUT);
    a->cu_seqlens_q = stage_ints(s, a->cu_seqlens_q, a->kv.n_seqs + 1);
    stage_tensor(s, &a->blocks, INPUT);
    stage_index(s, &a->index, INPUT);
    stage_tensor(s, &a->out, INPUT);
    stage_tensor(s, &a->lse, INPUT);
    stage_tensor(s, &a->d_out, INPUT);
    stage_tensor(s, &a->dq, OUTPUT);
    stage_tensor(s, &a->dk, OUTPUT);
    stage_tensor(s, &a->dv, OUTPUT);
})

CALL_PLANNED(dense_attend_backward, {
    stage_tensor(s, &a->q, INPUT);
    stage_view(s, &a->kv, INPUT);
    a->cu_seqlens_q = stage_ints(s, a->cu_seqlens_q, a->kv.n_seqs + 1);
    a->sink_logit = stage_bytes(s, a->sink_logit, (size_t)a->q.shape[1] * sizeof(float), INPUT);
    stage_tensor(s, &a->out, INPUT);
    stage_tensor(s, &a->lse, INPUT);
    stage_tensor(s, &a->d_out, INPUT);
    stage_tensor(s, &a->dq, OUTPUT);
    stage_tensor(s, &a->dk, OUTPUT);
    stage_tensor(s, &a->dv, OUTPUT);
    stage_tensor(s, &a->d_sink_logit, OUTPUT);
})

CALL_PLANNED(index_kl, {
    stage_tensor(s, &a->q, INPUT);
    stage_tensor(s, &a->q_index, INPUT);
    stage_view(s, &a->kv, INPUT);
    a->cu_seqlens_q = stage_ints(s, a->cu_seqlens_q, a->kv.n_seqs + 1);
    stage_tensor(s, &a->blocks, INPUT);
    stage_index(s, &a->index, INPUT);
    stage_tensor(s, &a->lse, INPUT);
    stage_tensor(s, &a->index_lse, INPUT);
    stage_tensor(s, &a->loss, OUTPUT);
    stage_tensor(s, &a->dq_index, OUTPUT);
    stage_tensor(s, &a->dk_index, OUTPUT);
})

CALL_PLANNED(block_mass, {
    stage_tensor(s, &a->q, INPUT);
    stage_view(s, &a->kv, INPUT);
    a->cu_seqlens_q = stage_ints(s, a->cu_seqlens_q, a->kv.n_seqs + 1);
    stage_tensor(s, &a->lse, INPUT);
    stage_tensor(s, &a->mass, OUTPUT);
})

static msa_mlp_gradients *stage_gradients(stage *s, const msa_mlp_gradients *gradients, int32_t n)
{
    if (!gradients || n <= 0) return NULL;
    msa_mlp_gradients *staged = malloc((size_t)n * sizeof(*staged));
    assert_non_null(staged);
    for (int32_t i = 0; i < n; i++) {
        staged[i] = gradients[i];
        stage_tensor(s, &staged[i].gate, OUTPUT);
        stage_tensor(s, &staged[i].up, OUTPUT);
        stage_tensor(s, &staged[i].down, OUTPUT);
    }
    return staged;
}

msa_status call_moe_backward(msa_context *ctx, const msa_plan *plan,
                             const msa_moe_backward_args *args, void *workspace,
                             size_t workspace_bytes)
{
    if (!msa_context_uses_device_memory(ctx)) {
        return msa_moe_backward(ctx, plan, args, workspace, workspace_bytes);
    }
    stage s = {ctx, NULL, 0, 0};
    msa_moe_backward_args a = *args;
    size_t n_choices = (size_t)(a.x.shape[0] * a.topk);
    msa_status status;
    stage_tensor(&s, &a.x, INPUT);
    a.ids = stage_ints(&s, a.ids, (int64_t)n_choices);
    a.weights = stage_bytes(&s, a.weights, n_choices * sizeof(float), INPUT);
    msa_mlp_weights *experts = stage_mlps(&s, a.experts, a.n_experts);
    msa_mlp_weights *shared = stage_mlps(&s, a.shared, 1);
    msa_mlp_gradients *d_experts = stage_gradients(&s, a.d_experts, a.n_experts);
    msa_mlp_gradients *d_shared = stage_gradients(&s, a.d_shared, 1);
    a.experts = experts;
    a.shared = shared;
    a.d_experts = d_experts;
    a.d_shared = d_shared;
    stage_tensor(&s, &a.d_out, INPUT);
    stage_tensor(&s, &a.dx, OUTPUT);
    a.d_weights = stage_bytes(&s, a.d_weights, n_choices * sizeof(float), OUTPUT);
    workspace = stage_bytes(&s, workspace, workspace_bytes, SCRATCH);
    RUN_TWICE(&s, status, msa_moe_backward(ctx, plan, &a, workspace, workspace_bytes));
    free(experts);
    free(shared);
    free(d_experts);
    free(d_shared);
    return status;
}
