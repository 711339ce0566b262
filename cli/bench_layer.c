/* See bench_layer.h. */
#include "bench_layer.h"

#include "bench_data.h"

#include <stdlib.h>
#include <string.h>

/* ---- memory ---------------------------------------------------------------------------------- */

typedef struct part {
    msa_tensor *tensor;
    msa_dtype dtype;
    int32_t is_random;
    int64_t shape[3]; /* the last one 0: two dimensions */
} part;

static void list_parts(bench_layer *l, part *parts)
{
    const layer_shape *s = &l->shape;
    int64_t n = s->n_tokens, hq = s->n_q_heads, hkv = s->n_kv_heads, dim = s->dim;
    int64_t capacity = n / s->block_size + 1;
    const msa_dtype half = MSA_DTYPE_BF16, full = MSA_DTYPE_F32, ids = MSA_DTYPE_I32;
    const part all[LAYER_N_TENSORS] = {
        {&l->q, half, 1, {n, hq, dim}},
        {&l->k, half, 1, {n, hkv, dim}},
        {&l->v, half, 1, {n, hkv, dim}},
        {&l->q_index, half, 1, {n, hkv, dim}},
        {&l->k_index, half, 1, {n, dim, 0}},
        {&l->d_out, half, 1, {n, hq, dim}},
        {&l->out, half, 0, {n, hq, dim}},
        {&l->lse, full, 0, {n, hq, 0}},
        {&l->dq, full, 0, {n, hq, dim}},
        {&l->dk, full, 0, {n, hkv, dim}},
        {&l->dv, full, 0, {n, hkv, dim}},
        {&l->loss, full, 0, {n, hkv, 0}},
        {&l->dq_index, full, 0, {n, hkv, dim}},
        {&l->dk_index, full, 0, {n, dim, 0}},
        {&l->blocks, ids, 0, {n, hkv, s->topk}},
        {&l->reverse.offsets, ids, 0, {hkv, capacity + 1, 0}},
        {&l->reverse.queries, ids, 0, {hkv, n * s->topk, 0}},
    };
    memcpy(parts, all, sizeof(all));
}

static int64_t part_numbers(const part *p)
{
    return p->shape[0] * p->shape[1] * (p->shape[2] ? p->shape[2] : 1);
}

static msa_status fill(msa_context *ctx, void *to, int64_t n, uint64_t *state)
{
    enum { AT_ONCE = 1 << 20 };
    uint16_t *numbers = malloc(AT_ONCE * sizeof(*numbers));
    msa_status status = numbers ? MSA_OK : MSA_ENOMEM;
    if (numbers) bench_draw_bf16(state, numbers, AT_ONCE);
    for (int64_t done = 0; status == MSA_OK && done < n; done += AT_ONCE) {
        int64_t piece = n - done < AT_ONCE ? n - done : AT_ONCE;
        status = msa_memory_upload(ctx, (uint16_t *)to + done, numbers, (size_t)piece * 2);
    }
    free(numbers);
    return status;
}

static msa_status open_part(bench_layer *l, const part *p, uint64_t *state)
{
    void *data = NULL;
    int64_t n = part_numbers(p);
    msa_status status = msa_memory_alloc(l->ctx, (size_t)n * msa_dtype_bytes(p->dtype), &data);
    *p->tensor = msa_tensor_make(data, p->dtype, p->shape[2] ? 3 : 2, p->shape[0], p->shape[1],
                                 p->shape[2], 0);
    return status == MSA_OK && p->is_random ? fill(l->ctx, data, n, state) : status;
}

void layer_close(bench_layer *l)
{
    part parts[LAYER_N_TENSORS];
    if (!l->ctx) return;
    list_parts(l, parts);
    for (int i = 0; i < LAYER_N_TENSORS; i++) {
        msa_memory_free(l->ctx, parts[i].tensor->data,
                        (size_t)part_numbers(&parts[i]) * msa_dtype_bytes(parts[i].dtype));
    }
    msa_memory_free(l->ctx, l->cu_seqlens, 2 * sizeof(*l->cu_seqlens));
    msa_memory_free(l->ctx, l->workspace, l->workspace_bytes);
}

/* ---- operators ------------------------------------------------------------------------------- */

static msa_kv_view kv_of(const bench_layer *l)
{
    msa_kv_view kv;
    memset(&kv, 0, sizeof(kv));
    kv.k = l->k;
    kv.v = l->v;
    kv.k_index = l->k_index;
    kv.cu_seqlens_k = l->cu_seqlens;
    kv.n_seqs = 1;
    return kv;
}

/* Ask for the bytes of the workspace, or run. */
#define PLAN_OR_RUN(op_plan, op)                                                                   \
    do {                                                                                           \
        msa_plan plan;                                                                             \
        msa_plan_init(&plan);                                                                      \
        msa_status status = op_plan(l->ctx, &args, &plan);                                         \
        if (status != MSA_OK) return status;                                                       \
        if (bytes) {                                                                               \
            *bytes = plan.workspace_bytes;                                                         \
            return MSA_OK;                                                                         \
        }                                                                                          \
        return op(l->ctx, &plan, &args, l->workspace, l->workspace_bytes);                         \
    } while (0)

static msa_status dense(bench_layer *l, size_t *bytes)
{
    msa_dense_attend_args args;
    msa_dense_attend_args_init(&args);
    args.q = l->q;
    args.kv = kv_of(l);
    args.cu_seqlens_q = l->cu_seqlens;
    args.block_size = l->shape.block_size;
    args.out = l->out;
    args.lse = l->lse;
    PLAN_OR_RUN(msa_dense_attend_plan, msa_dense_attend);
}

static msa_status dense_backward(bench_layer *l, size_t *bytes)
{
    msa_dense_attend_backward_args args;
    msa_dense_attend_backward_args_init(&args);
    args.q = l->q;
    args.kv = kv_of(l);
    args.cu_seqlens_q = l->cu_seqlens;
    args.out = l->out;
    args.lse = l->lse;
    args.d_out = l->d_out;
    args.dq = l->dq;
    args.dk = l->dk;
    args.dv = l->dv;
    PLAN_OR_RUN(msa_dense_attend_backward_plan, msa_dense_attend_backward);
}

static msa_status choose(bench_layer *l, size_t *bytes)
{
    msa_select_args args;
    msa_select_args_init(&args);
    args.q_index = l->q_index;
    args.kv = kv_of(l);
    args.cu_seqlens_q = l->cu_seqlens;
    args.block_size = l->shape.block_size;
    args.topk = l->shape.topk;
    args.blocks = l->blocks;
    PLAN_OR_RUN(msa_select_plan, msa_select);
}

static msa_status attend(bench_layer *l, size_t *bytes)
{
    msa_attend_args args;
    msa_attend_args_init(&args);
    args.q = l->q;
    args.kv = kv_of(l);
    args.cu_seqlens_q = l->cu_seqlens;
    args.blocks = l->blocks;
    args.block_size = l->shape.block_size;
    args.out = l->out;
    args.lse = l->lse;
    PLAN_OR_RUN(msa_attend_plan, msa_attend);
}

static msa_status reverse_index(bench_layer *l, size_t *bytes)
{
    msa_reverse_index_args args;
    msa_reverse_index_args_init(&args);
    args.blocks = l->blocks;
    args.kv = kv_of(l);
    args.cu_seqlens_q = l->cu_seqlens;
    args.block_size = l->shape.block_size;
    args.index = l->reverse;
    PLAN_OR_RUN(msa_reverse_index_plan, msa_reverse_index_build);
}

static msa_status attend_backward(bench_layer *l, size_t *bytes)
{
    msa_attend_backward_args args;
    msa_attend_backward_args_init(&args);
    args.q = l->q;
    args.kv = kv_of(l);
    args.cu_seqlens_q = l->cu_seqlens;
    args.blocks = l->blocks;
    args.index = l->reverse;
    args.block_size = l->shape.block_size;
    args.out = l->out;
    args.lse = l->lse;
    args.d_out = l->d_out;
    args.dq = l->dq;
    args.dk = l->dk;
    args.dv = l->dv;
    PLAN_OR_RUN(msa_attend_backward_plan, msa_attend_backward);
}

static msa_status index_kl(bench_layer *l, size_t *bytes)
{
    msa_index_kl_args args;
    msa_index_kl_args_init(&args);
    args.q = l->q;
    args.q_index = l->q_index;
    args.kv = kv_of(l);
    args.cu_seqlens_q = l->cu_seqlens;
    args.blocks = l->blocks;
    args.index = l->reverse;
    args.block_size = l->shape.block_size;
    args.weight = 1.0f / (float)l->shape.n_tokens;
    args.lse = l->lse;
    args.loss = l->loss;
    args.dq_index = l->dq_index;
    args.dk_index = l->dk_index;
    PLAN_OR_RUN(msa_index_kl_plan, msa_index_kl);
}

static const struct {
    const char *name;
    msa_status (*run)(bench_layer *l, size_t *bytes);
} ops[LAYER_N_OPS] = {
    {"dense forward", dense},
    {"dense backward", dense_backward},
    {"select", choose},
    {"attend forward", attend},
    {"reverse index", reverse_index},
    {"attend backward", attend_backward},
    {"index loss", index_kl},
};

const char *layer_op_name(int32_t op)
{
    return ops[op].name;
}

msa_status layer_run(bench_layer *l, int32_t op)
{
    return ops[op].run(l, NULL);
}

/* ---- the whole ------------------------------------------------------------------------------- */

static msa_status open_workspace(bench_layer *l)
{
    for (int32_t op = 0; op < LAYER_N_OPS; op++) {
        size_t bytes = 0;
        msa_status status = ops[op].run(l, &bytes);
        if (status != MSA_OK) return status;
        if (bytes > l->workspace_bytes) l->workspace_bytes = bytes;
    }
    return msa_memory_alloc(l->ctx, l->workspace_bytes, &l->workspace);
}

msa_status layer_open(bench_layer *l, msa_context *ctx, const layer_shape *shape, uint64_t seed)
{
    part parts[LAYER_N_TENSORS];
    int32_t cu_seqlens[2] = {0, shape->n_tokens};
    void *memory = NULL;
    memset(l, 0, sizeof(*l));
    l->ctx = ctx;
    l->shape = *shape;
    list_parts(l, parts);
    msa_status status = msa_memory_alloc(ctx, sizeof(cu_seqlens), &memory);
    l->cu_seqlens = memory;
    if (status == MSA_OK) status = msa_memory_upload(ctx, memory, cu_seqlens, sizeof(cu_seqlens));
    for (int i = 0; status == MSA_OK && i < LAYER_N_TENSORS; i++) {
        status = open_part(l, &parts[i], &seed);
    }
    return status == MSA_OK ? open_workspace(l) : status;
}

double layer_flops(const layer_shape *s, int32_t op)
{
    double n = s->n_tokens, visible = n * (n + 1) / 2, selected = 0;
    for (int64_t i = 0; i < s->n_tokens; i++) {
        int64_t local = i / s->block_size, kept = local + 1 < s->topk ? local + 1 : s->topk;
        selected += (double)((kept - 1) * s->block_size + i % s->block_size + 1);
    }
    double heads = (double)s->n_q_heads * s->dim, index = (double)s->n_kv_heads * s->dim;
    switch (op) {
    case LAYER_DENSE:
        return 4 * heads * visible;
    case LAYER_DENSE_BACKWARD:
        return 8 * heads * visible;
    case LAYER_SELECT:
        return 2 * index * visible;
    case LAYER_ATTEND:
        return 4 * heads * selected;
    case LAYER_ATTEND_BACKWARD:
        return 8 * heads * selected;
    case LAYER_INDEX_KL:
        return 4 * index * selected;
    default:
        return 0;
    }
}
