/* Attention's gradients beside its forward pass, in GFLOP/s of one core.
 *
 *     bench_gradient [isa]
 *
 * Operations are those of the visible selected pairs, (M24): 4 D forward, 10 D backward, 2 D + 6 Di
 * / G of the KL loss, for every pair and head; blocks are whole and weights are made more often
 * than that, so the hardware does more. Time is the processor's, the best of five.
 */
#define _GNU_SOURCE
#include "bench.h"
#include "msa/gradient.h"
#include "msa/msa.h"

static msa_context *ctx;

typedef struct {
    const char *name;
    msa_dtype dtype;
    int64_t n_tokens, n_heads, n_groups, dim, topk;
    int32_t block_size;
} shape;

static uint32_t draw(void)
{
    static uint32_t state = 1;
    state ^= state << 13;
    state ^= state >> 17;
    return state ^= state << 5;
}

static msa_tensor tensor(const shape *s, msa_dtype dtype, int64_t heads, int64_t dim)
{
    int64_t n = s->n_tokens * heads * dim;
    void *data = allocate((size_t)n * msa_dtype_bytes(dtype));
    for (int64_t i = 0; i < n; i++) {
        float x = (float)(int32_t)draw() * 0x1p-31f;
        uint32_t bits;
        memcpy(&bits, &x, 4);
        if (dtype == MSA_DTYPE_BF16) ((uint16_t *)data)[i] = (uint16_t)(bits >> 16);
        if (dtype == MSA_DTYPE_F32) ((float *)data)[i] = x;
    }
    return msa_tensor_make(data, dtype, dim > 1 ? 3 : 2, s->n_tokens, heads, dim, 1);
}

/* The local block and others before it, ascending; returns the selected visible pairs of a group.
 */
static double fill_rows(const shape *s, int32_t *rows)
{
    double n_pairs = 0;
    for (int64_t row = 0; row < s->n_tokens * s->n_groups; row++) {
        int64_t position = row / s->n_groups, local = position / s->block_size;
        int64_t n = local + 1 < s->topk ? local + 1 : s->topk, left = n - 1, k = 0;
        for (int64_t b = 0; b < local; b++) { /* each with the chance that fills the row */
            if ((int64_t)(draw() % (uint32_t)(local - b)) >= left) continue;
            rows[row * s->topk + k++] = (int32_t)b;
            left--;
        }
        rows[row * s->topk + k++] = (int32_t)local;
        for (; k < s->topk; k++) rows[row * s->topk + k] = -1;
        n_pairs += (double)((n - 1) * s->block_size + position % s->block_size + 1);
    }
    return n_pairs / (double)s->n_groups;
}

#define TIME(label, flops, op, call, args)                                                         \
    do {                                                                                           \
        msa_plan plan = {.struct_size = sizeof(plan)};                                             \
        double best = 1e9;                                                                         \
        must(msa_##op##_plan(ctx, &(args), &plan));                                                \
        void *workspace = allocate(plan.workspace_bytes);                                          \
        for (int run = 0; run < 5; run++) {                                                        \
            double start = cpu_s();                                                                \
            must(msa_##call(ctx, &plan, &(args), workspace, plan.workspace_bytes));                \
            double seconds = cpu_s() - start;                                                      \
            if (seconds < best) best = seconds;                                                    \
        }                                                                                          \
        free(workspace);                                                                           \
        printf("%-7s %-10s %-22s %8.2f ms %8.1f GFLOP/s\n", msa_context_isa(ctx), s->name, label,  \
               best * 1e3, (flops) / best * 1e-9);                                                 \
    } while (0)

typedef struct {
    msa_tensor q, q_index, out, lse, d_out, dq, dk, dv, blocks, loss, dq_index, dk_index, mass;
    msa_kv_view kv;
    int32_t cu[2];
    msa_reverse_index index;
    double sparse_pairs, dense_pairs;
} layer;

static layer layer_create(const shape *s)
{
    layer l;
    memset(&l, 0, sizeof(l));
    l.q = tensor(s, s->dtype, s->n_heads, s->dim);
    l.q_index = tensor(s, s->dtype, s->n_groups, s->dim);
    l.kv.k = tensor(s, s->dtype, s->n_groups, s->dim);
    l.kv.v = tensor(s, s->dtype, s->n_groups, s->dim);
    l.kv.k_index = tensor(s, s->dtype, s->dim, 1);
    l.out = tensor(s, s->dtype, s->n_heads, s->dim);
    l.lse = tensor(s, MSA_DTYPE_F32, s->n_heads, 1);
    l.d_out = tensor(s, s->dtype, s->n_heads, s->dim);
    l.dq = tensor(s, MSA_DTYPE_F32, s->n_heads, s->dim);
    l.dk = tensor(s, MSA_DTYPE_F32, s->n_groups, s->dim);
    l.dv = tensor(s, MSA_DTYPE_F32, s->n_groups, s->dim);
    l.blocks = tensor(s, MSA_DTYPE_I32, s->n_groups, s->topk);
    l.loss = tensor(s, MSA_DTYPE_F32, s->n_groups, 1);
    l.dq_index = tensor(s, MSA_DTYPE_F32, s->n_groups, s->dim);
    l.dk_index = tensor(s, MSA_DTYPE_F32, s->dim, 1);
    l.mass = tensor(s, MSA_DTYPE_F32, s->n_groups, s->n_tokens / s->block_size + 1);
    l.cu[1] = (int32_t)s->n_tokens;
    l.kv.n_seqs = 1;
    l.sparse_pairs = fill_rows(s, l.blocks.data);
    l.dense_pairs = 0.5 * (double)s->n_tokens * (double)(s->n_tokens + 1);
    int64_t capacity = s->n_tokens / s->block_size + 1;
    shape index = *s;
    index.n_tokens = s->n_groups;
    l.index.offsets = tensor(&index, MSA_DTYPE_I32, capacity + 1, 1);
    l.index.queries = tensor(&index, MSA_DTYPE_I32, s->n_tokens * s->topk, 1);
    return l;
}

static void layer_free(layer *l)
{
    msa_tensor *all[] = {
        &l->q,    &l->q_index, &l->out,    &l->lse,        &l->d_out,         &l->dq,
        &l->dk,   &l->dv,      &l->blocks, &l->loss,       &l->dq_index,      &l->dk_index,
        &l->mass, &l->kv.k,    &l->kv.v,   &l->kv.k_index, &l->index.offsets, &l->index.queries};
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) free(all[i]->data);
}

static void time_sparse(const shape *s, layer *l)
{
    double pairs = l->sparse_pairs * (double)s->n_heads, group = (double)(s->n_heads / s->n_groups);
    msa_attend_args forward;
    msa_reverse_index_args reverse;
    msa_attend_backward_args backward;
    msa_index_kl_args kl;
    msa_attend_args_init(&forward);
    forward.q = l->q;
    forward.kv = l->kv;
    forward.cu_seqlens_q = l->cu;
    forward.blocks = l->blocks;
    forward.block_size = s->block_size;
    forward.out = l->out;
    forward.lse = l->lse;
    TIME("attend", 4 * (double)s->dim * pairs, attend, attend, forward);
    msa_reverse_index_args_init(&reverse);
    reverse.blocks = l->blocks;
    reverse.kv = l->kv;
    reverse.cu_seqlens_q = l->cu;
    reverse.block_size = s->block_size;
    reverse.index = l->index;
    TIME("reverse index", 0.0, reverse_index, reverse_index_build, reverse);
    msa_attend_backward_args_init(&backward);
    backward.q = l->q;
    backward.kv = l->kv;
    backward.cu_seqlens_q = l->cu;
    backward.blocks = l->blocks;
    backward.index = l->index;
    backward.block_size = s->block_size;
    backward.out = l->out;
    backward.lse = l->lse;
    backward.d_out = l->d_out;
    backward.dq = l->dq;
    backward.dk = l->dk;
    backward.dv = l->dv;
    TIME("attend_backward", 10 * (double)s->dim * pairs, attend_backward, attend_backward,
         backward);
    msa_index_kl_args_init(&kl);
    kl.q = l->q;
    kl.q_index = l->q_index;
    kl.kv = l->kv;
    kl.cu_seqlens_q = l->cu;
    kl.blocks = l->blocks;
    kl.index = l->index;
    kl.block_size = s->block_size;
    kl.weight = 1;
    kl.lse = l->lse;
    kl.loss = l->loss;
    kl.dq_index = l->dq_index;
    kl.dk_index = l->dk_index;
    TIME("index_kl", (2 + 6 / group) * (double)s->dim * pairs, index_kl, index_kl, kl);
}

static void time_dense(const shape *s, layer *l)
{
    double pairs = l->dense_pairs * (double)s->n_heads, group = (double)(s->n_heads / s->n_groups);
    msa_dense_attend_args forward;
    msa_dense_attend_backward_args backward;
    msa_index_kl_args kl;
    msa_block_mass_args mass;
    msa_dense_attend_args_init(&forward);
    forward.q = l->q;
    forward.kv = l->kv;
    forward.cu_seqlens_q = l->cu;
    forward.out = l->out;
    forward.lse = l->lse;
    TIME("dense_attend", 4 * (double)s->dim * pairs, dense_attend, dense_attend, forward);
    msa_dense_attend_backward_args_init(&backward);
    backward.q = l->q;
    backward.kv = l->kv;
    backward.cu_seqlens_q = l->cu;
    backward.out = l->out;
    backward.lse = l->lse;
    backward.d_out = l->d_out;
    backward.dq = l->dq;
    backward.dk = l->dk;
    backward.dv = l->dv;
    TIME("dense_attend_backward", 10 * (double)s->dim * pairs, dense_attend_backward,
         dense_attend_backward, backward);
    msa_index_kl_args_init(&kl);
    kl.q = l->q;
    kl.q_index = l->q_index;
    kl.kv = l->kv;
    kl.cu_seqlens_q = l->cu;
    kl.block_size = s->block_size;
    kl.weight = 1;
    kl.lse = l->lse;
    kl.loss = l->loss;
    kl.dq_index = l->dq_index;
    kl.dk_index = l->dk_index;
    TIME("index_kl, warm-up", (2 + 6 / group) * (double)s->dim * pairs, index_kl, index_kl, kl);
    msa_block_mass_args_init(&mass);
    mass.q = l->q;
    mass.kv = l->kv;
    mass.cu_seqlens_q = l->cu;
    mass.block_size = s->block_size;
    mass.lse = l->lse;
    mass.mass = l->mass;
    TIME("block_mass", 2 * (double)s->dim * pairs, block_mass, block_mass, mass);
}

int main(int argc, char **argv)
{
    static const shape shapes[] = {
        {"tiny f32", MSA_DTYPE_F32, 2048, 4, 2, 64, 8, 64},
        {"tiny bf16", MSA_DTYPE_BF16, 2048, 4, 2, 64, 8, 64},
        {"M3 bf16", MSA_DTYPE_BF16, 2048, 32, 2, 128, 8, 128},
        {"M3 f32", MSA_DTYPE_F32, 2048, 32, 2, 128, 8, 128},
    };
    for (int32_t i = 0, usable; msa_cpu_isa_name(i, &usable); i++) {
        const char *isa = msa_cpu_isa_name(i, NULL);
        msa_context_args args;
        if (!usable || (argc > 1 ? strcmp(isa, argv[1]) : !strcmp(isa, "generic"))) continue;
        msa_context_args_init(&args);
        args.backend = "cpu";
        args.cpu_isa = isa;
        args.n_threads = 1;
        must(msa_context_create(&ctx, &args));
        for (size_t n = 0; n < sizeof(shapes) / sizeof(shapes[0]); n++) {
            layer l = layer_create(&shapes[n]);
            l.kv.cu_seqlens_k = l.cu;
            time_sparse(&shapes[n], &l);
            time_dense(&shapes[n], &l);
            layer_free(&l);
        }
        msa_context_destroy(ctx);
    }
    return 0;
}
