/* See fake_device.h. */
#define _DEFAULT_SOURCE
#include "engine/fake_device.h"

#include "base/error.h"
#include "harness/cmocka_all.h"
#include "ops/backend.h"

#include <stdlib.h>
#include <sys/mman.h>

#define MAX_COPIES 256
#define ALIGNMENT  256

/* X(operator, takes a workspace) */
#define OPERATORS(X)                                                                               \
    X(select, 1)                                                                                   \
    X(attend, 1)                                                                                   \
    X(dense_attend, 1)                                                                             \
    X(kv_append, 0)                                                                                \
    X(index_quantize, 0)                                                                           \
    X(embed, 0)                                                                                    \
    X(rmsnorm, 0)                                                                                  \
    X(rope, 0)                                                                                     \
    X(linear, 1)                                                                                   \
    X(swiglu, 0)                                                                                   \
    X(router, 0)                                                                                   \
    X(moe, 1)                                                                                      \
    X(layernorm, 0)                                                                                \
    X(layernorm_backward, 1)                                                                       \
    X(window_blocks, 0)                                                                            \
    X(block_means, 0)                                                                              \
    X(moba_select, 1)                                                                              \
    X(token_select, 1)                                                                             \
    X(token_attend, 1)                                                                             \
    X(token_attend_backward, 1)                                                                    \
    X(token_kl, 1)                                                                                 \
    X(reverse_index, 1)                                                                            \
    X(attend_backward, 1)                                                                          \
    X(dense_attend_backward, 1)                                                                    \
    X(index_kl, 1)                                                                                 \
    X(block_mass, 1)                                                                               \
    X(embed_backward, 1)                                                                           \
    X(rmsnorm_backward, 1)                                                                         \
    X(linear_backward, 1)                                                                          \
    X(swiglu_backward, 0)                                                                          \
    X(router_backward, 1)                                                                          \
    X(moe_backward, 1)                                                                             \
    X(cross_entropy, 0)                                                                            \
    X(adamw, 0)                                                                                    \
    X(sum_squares, 1)

enum {
#define OPERATOR_ID(op, workspace) ID_##op,
    OPERATORS(OPERATOR_ID)
#undef OPERATOR_ID
        ID_upload
};

typedef struct pending_copy {
    void *dst;
    const void *src;
    size_t bytes;
    void *snapshot; /* of a download: what the device held then */
} pending_copy;

/* One operator call with its arguments, or a recorded upload. */
typedef struct call {
    int id;
    void *workspace;
    union {
#define OPERATOR_ARGS(op, workspace) msa_##op##_args op;
        OPERATORS(OPERATOR_ARGS)
#undef OPERATOR_ARGS
        pending_copy upload;
    } args;
} call;

struct msa_graph {
    call *calls;
    size_t n_calls, capacity;
};

static struct {
    unsigned char *memory;
    size_t bytes, used;
    pending_copy uploads[MAX_COPIES], downloads[MAX_COPIES];
    int n_uploads, n_downloads;
    msa_graph *recording;
    int refuse;
    fake_device_counts counts;
    msa__backend table;
} device;

/* ---- its memory --------------------------------------------------------------------------- */

static void protect(int access)
{
    assert_int_equal(mprotect(device.memory, device.bytes, access), 0);
}

static int is_device(const void *ptr)
{
    const unsigned char *p = ptr;
    return p >= device.memory && p < device.memory + device.bytes;
}

static void expect_device(const char *what, const void *ptr)
{
    if (!is_device(ptr)) fail_msg("%s = %p, is not device memory", what, ptr);
}

/* Memory is handed out once: what uses freed memory finds nothing there. */
static msa_status memory_alloc(msa_context *ctx, size_t bytes, void **out)
{
    (void)ctx;
    size_t padded = (bytes + ALIGNMENT) / ALIGNMENT * ALIGNMENT;
    if (padded > device.bytes - device.used) {
        return MSA_FAIL(MSA_EDEVMEM, "memory_alloc: no device memory for %zu bytes", bytes);
    }
    *out = device.memory + device.used;
    device.used += padded;
    device.counts.n_allocations++;
    device.counts.n_live++;
    return MSA_OK;
}

static void memory_free(msa_context *ctx, void *ptr)
{
    (void)ctx;
    expect_device("free", ptr);
    device.counts.n_live--;
}

static msa_status memory_alloc_host(msa_context *ctx, size_t bytes, void **out)
{
    *out = ctx->allocator.alloc(ctx->allocator.user, bytes, 64);
    if (!*out) return MSA_FAIL(MSA_ENOMEM, "memory_alloc_host: no memory");
    memset(*out, 0xa5, bytes);
    device.counts.n_allocations++;
    device.counts.n_live++;
    return MSA_OK;
}

static void memory_free_host(msa_context *ctx, void *ptr)
{
    assert_int_equal(device.n_uploads + device.n_downloads, 0);
    ctx->allocator.free(ctx->allocator.user, ptr, 0);
    device.counts.n_live--;
}

static msa_status memory_info(msa_context *ctx, int64_t *free_bytes, int64_t *total_bytes)
{
    (void)ctx;
    *free_bytes = (int64_t)(device.bytes - device.used);
    *total_bytes = (int64_t)device.bytes;
    return MSA_OK;
}

/* What the host memory of the uploads holds now reaches the device. */
static void finish_uploads(void)
{
    protect(PROT_READ | PROT_WRITE);
    for (int i = 0; i < device.n_uploads; i++) {
        memcpy(device.uploads[i].dst, device.uploads[i].src, device.uploads[i].bytes);
    }
    device.n_uploads = 0;
}

static pending_copy *add_copy(pending_copy *copies, int *n)
{
    assert_true(*n < MAX_COPIES);
    return &copies[(*n)++];
}

static void begin_download(void *dst, const void *src, size_t bytes)
{
    void *snapshot = malloc(bytes);
    assert_non_null(snapshot);
    memcpy(snapshot, src, bytes);
    *add_copy(device.downloads, &device.n_downloads) = (pending_copy){dst, src, bytes, snapshot};
}

static void record(call c)
{
    msa_graph *graph = device.recording;
    if (graph->n_calls == graph->capacity) {
        graph->capacity = 2 * graph->capacity + 64;
        graph->calls = realloc(graph->calls, graph->capacity * sizeof(*graph->calls));
        assert_non_null(graph->calls);
    }
    graph->calls[graph->n_calls++] = c;
}

static msa_status memory_copy(msa_context *ctx, void *dst, const void *src, size_t bytes,
                              int32_t kind)
{
    (void)ctx;
    int upload = kind == MSA__COPY_UPLOAD || kind == MSA__COPY_UPLOAD_ASYNC;
    int download = kind == MSA__COPY_DOWNLOAD || kind == MSA__COPY_DOWNLOAD_ASYNC;
    assert_int_equal(is_device(dst), !download);
    assert_int_equal(is_device(src), !upload);
    if (device.recording) {
        assert_int_equal(kind, MSA__COPY_UPLOAD_ASYNC);
        record((call){.id = ID_upload, .args.upload = {dst, src, bytes, NULL}});
        return MSA_OK;
    }
    device.counts.n_uploads += upload;
    device.counts.n_downloads += download;
    if (kind == MSA__COPY_UPLOAD_ASYNC) {
        *add_copy(device.uploads, &device.n_uploads) = (pending_copy){dst, src, bytes, NULL};
        return MSA_OK;
    }
    finish_uploads();
    if (kind == MSA__COPY_DOWNLOAD_ASYNC) {
        begin_download(dst, src, bytes);
    } else {
        memmove(dst, src, bytes);
    }
    protect(PROT_NONE);
    return MSA_OK;
}

static msa_status synchronize(msa_context *ctx)
{
    (void)ctx;
    assert_null(device.recording);
    finish_uploads();
    for (int i = 0; i < device.n_downloads; i++) {
        memcpy(device.downloads[i].dst, device.downloads[i].snapshot, device.downloads[i].bytes);
        free(device.downloads[i].snapshot);
    }
    device.n_downloads = 0;
    protect(PROT_NONE);
    device.counts.n_synchronizations++;
    return MSA_OK;
}

/* ---- its operators ------------------------------------------------------------------------ */

static void expect_view(const msa_kv_view *kv)
{
    expect_device("kv.k", kv->k.data);
    if (kv->v.data) expect_device("kv.v", kv->v.data);
    if (kv->k_index.data) expect_device("kv.k_index", kv->k_index.data);
    if (kv->cu_seqlens_k) {
        expect_device("kv.cu_seqlens_k", kv->cu_seqlens_k);
        return;
    }
    expect_device("kv.page_table", kv->page_table);
    expect_device("kv.kv_lens", kv->kv_lens);
}

static void expect_mlp(const msa_mlp_weights *mlp)
{
    assert_false(is_device(mlp));
    expect_device("gate", mlp->gate.w.data);
    expect_device("up", mlp->up.w.data);
    expect_device("down", mlp->down.w.data);
    if (mlp->down.scales.data) expect_device("down.scales", mlp->down.scales.data);
}

static void expect_moe(const msa_moe_args *args)
{
    expect_device("x", args->x.data);
    expect_device("out", args->out.data);
    for (int32_t e = 0; e < args->n_experts; e++) expect_mlp(&args->experts[e]);
    if (args->shared) expect_mlp(args->shared);
    if (args->n_experts == 0) return;
    expect_device("ids", args->ids);
    expect_device("weights", args->weights);
}

#define EXPECT(op, member) expect_device(#op "." #member, c->args.op.member)

static void expect_attention_gradient(const call *c)
{
    switch (c->id) {
    case ID_reverse_index:
        EXPECT(reverse_index, blocks.data);
        EXPECT(reverse_index, cu_seqlens_q);
        EXPECT(reverse_index, index.offsets.data);
        EXPECT(reverse_index, index.queries.data);
        break;
    case ID_attend_backward:
        expect_view(&c->args.attend_backward.kv);
        EXPECT(attend_backward, cu_seqlens_q);
        EXPECT(attend_backward, index.offsets.data);
        EXPECT(attend_backward, d_out.data);
        EXPECT(attend_backward, dq.data);
        break;
    case ID_dense_attend_backward:
        expect_view(&c->args.dense_attend_backward.kv);
        EXPECT(dense_attend_backward, cu_seqlens_q);
        EXPECT(dense_attend_backward, d_out.data);
        EXPECT(dense_attend_backward, dq.data);
        break;
    case ID_index_kl:
        expect_view(&c->args.index_kl.kv);
        EXPECT(index_kl, cu_seqlens_q);
        EXPECT(index_kl, lse.data);
        EXPECT(index_kl, dq_index.data);
        break;
    default:
        expect_view(&c->args.block_mass.kv);
        EXPECT(block_mass, cu_seqlens_q);
        EXPECT(block_mass, mass.data);
    }
}

static void expect_choice(const call *c)
{
    switch (c->id) {
    case ID_window_blocks:
        EXPECT(window_blocks, positions);
        EXPECT(window_blocks, blocks.data);
        break;
    case ID_block_means:
        expect_device("kv.k", c->args.block_means.kv.k.data);
        EXPECT(block_means, cu_seqlens_q);
        EXPECT(block_means, means.data);
        break;
    default:
        EXPECT(moba_select, q.data);
        EXPECT(moba_select, means.data);
        EXPECT(moba_select, blocks.data);
    }
}

static void expect_tokens(const call *c)
{
    switch (c->id) {
    case ID_token_select:
        expect_device("kv.k_index", c->args.token_select.kv.k_index.data);
        EXPECT(token_select, cu_seqlens_q);
        EXPECT(token_select, weights.data);
        EXPECT(token_select, tokens.data);
        break;
    case ID_token_attend:
        expect_view(&c->args.token_attend.kv);
        EXPECT(token_attend, tokens.data);
        EXPECT(token_attend, out.data);
        break;
    case ID_token_attend_backward:
        expect_view(&c->args.token_attend_backward.kv);
        EXPECT(token_attend_backward, tokens.data);
        EXPECT(token_attend_backward, dq.data);
        break;
    case ID_token_kl:
        expect_view(&c->args.token_kl.kv);
        EXPECT(token_kl, lse.data);
        EXPECT(token_kl, dq_index.data);
        break;
    case ID_layernorm:
        EXPECT(layernorm, x.data);
        EXPECT(layernorm, bias.data);
        break;
    default:
        EXPECT(layernorm_backward, x.data);
        EXPECT(layernorm_backward, d_bias.data);
    }
}

static void expect_layer_gradient(const call *c)
{
    switch (c->id) {
    case ID_embed_backward:
        EXPECT(embed_backward, ids);
        EXPECT(embed_backward, d_table.data);
        break;
    case ID_rmsnorm_backward:
        EXPECT(rmsnorm_backward, x.data);
        EXPECT(rmsnorm_backward, d_weight.data);
        break;
    case ID_linear_backward:
        EXPECT(linear_backward, d_out.data);
        EXPECT(linear_backward, d_weight.data);
        break;
    case ID_swiglu_backward:
        EXPECT(swiglu_backward, gate.data);
        EXPECT(swiglu_backward, d_out.data);
        EXPECT(swiglu_backward, d_up.data);
        break;
    case ID_router_backward:
        EXPECT(router_backward, ids);
        EXPECT(router_backward, d_weights);
        break;
    case ID_moe_backward:
        EXPECT(moe_backward, x.data);
        EXPECT(moe_backward, dx.data);
        assert_false(is_device(c->args.moe_backward.d_experts));
        break;
    case ID_cross_entropy:
        EXPECT(cross_entropy, targets);
        EXPECT(cross_entropy, loss.data);
        break;
    case ID_adamw:
        EXPECT(adamw, parameters);
        EXPECT(adamw, gradient);
        EXPECT(adamw, m);
        break;
    default:
        EXPECT(sum_squares, x);
        EXPECT(sum_squares, out);
    }
}

/* Every pointer that an operator would follow on the device. */
static void expect_device_arguments(const call *c)
{
    switch (c->id) {
    case ID_select:
        expect_view(&c->args.select.kv);
        expect_device("q_index", c->args.select.q_index.data);
        expect_device("cu_seqlens_q", c->args.select.cu_seqlens_q);
        expect_device("blocks", c->args.select.blocks.data);
        break;
    case ID_attend:
        expect_view(&c->args.attend.kv);
        expect_device("q", c->args.attend.q.data);
        expect_device("cu_seqlens_q", c->args.attend.cu_seqlens_q);
        expect_device("blocks", c->args.attend.blocks.data);
        expect_device("out", c->args.attend.out.data);
        break;
    case ID_dense_attend:
        expect_view(&c->args.dense_attend.kv);
        expect_device("q", c->args.dense_attend.q.data);
        expect_device("cu_seqlens_q", c->args.dense_attend.cu_seqlens_q);
        expect_device("out", c->args.dense_attend.out.data);
        break;
    case ID_kv_append:
        expect_view(&c->args.kv_append.kv);
        expect_device("k", c->args.kv_append.k.data);
        expect_device("v", c->args.kv_append.v.data);
        expect_device("cu_seqlens_q", c->args.kv_append.cu_seqlens_q);
        break;
    case ID_index_quantize:
        expect_view(&c->args.index_quantize.kv);
        expect_device("cu_seqlens_q", c->args.index_quantize.cu_seqlens_q);
        expect_device("index8.keys", c->args.index_quantize.index8.keys.data);
        expect_device("index8.bounds", c->args.index_quantize.index8.bounds.data);
        break;
    case ID_embed:
        expect_device("table", c->args.embed.table.data);
        expect_device("ids", c->args.embed.ids);
        expect_device("out", c->args.embed.out.data);
        break;
    case ID_rmsnorm:
        expect_device("x", c->args.rmsnorm.x.data);
        expect_device("weight", c->args.rmsnorm.weight.data);
        expect_device("out", c->args.rmsnorm.out.data);
        break;
    case ID_rope:
        expect_device("x", c->args.rope.x.data);
        expect_device("positions", c->args.rope.positions);
        expect_device("inv_freq", c->args.rope.inv_freq);
        break;
    case ID_linear:
        expect_device("x", c->args.linear.x.data);
        expect_device("weight", c->args.linear.weight.w.data);
        expect_device("out", c->args.linear.out.data);
        break;
    case ID_swiglu:
        expect_device("gate", c->args.swiglu.gate.data);
        expect_device("up", c->args.swiglu.up.data);
        expect_device("out", c->args.swiglu.out.data);
        break;
    case ID_router:
        expect_device("x", c->args.router.x.data);
        expect_device("weight", c->args.router.weight.data);
        expect_device("ids", c->args.router.ids);
        expect_device("weights", c->args.router.weights);
        break;
    case ID_moe:
        expect_moe(&c->args.moe);
        break;
    case ID_window_blocks:
    case ID_block_means:
    case ID_moba_select:
        expect_choice(c);
        break;
    case ID_layernorm:
    case ID_layernorm_backward:
    case ID_token_select:
    case ID_token_attend:
    case ID_token_attend_backward:
    case ID_token_kl:
        expect_tokens(c);
        break;
    case ID_reverse_index:
    case ID_attend_backward:
    case ID_dense_attend_backward:
    case ID_index_kl:
    case ID_block_mass:
        expect_attention_gradient(c);
        break;
    default:
        expect_layer_gradient(c);
    }
}

#define RUN_1(op) msa__cpu_backend.op(ctx, &c->args.op, c->workspace)
#define RUN_0(op) msa__cpu_backend.op(ctx, &c->args.op)

static msa_status run(msa_context *ctx, const call *c)
{
    msa_status status = MSA_EINTERNAL;
    if (c->id == ID_upload) {
        *add_copy(device.uploads, &device.n_uploads) = c->args.upload;
        return MSA_OK;
    }
    finish_uploads();
    switch (c->id) {
#define RUN_OPERATOR(op, workspace)                                                                \
    case ID_##op:                                                                                  \
        status = RUN_##workspace(op);                                                              \
        break;
        OPERATORS(RUN_OPERATOR)
#undef RUN_OPERATOR
    }
    protect(PROT_NONE);
    device.counts.n_operators++;
    return status;
}

static msa_status take(msa_context *ctx, const call *c)
{
    device.counts.n_calls++;
    expect_device_arguments(c);
    if (!device.recording) return run(ctx, c);
    if (device.refuse) return MSA_FAIL(MSA_EDEVICE, "fake: this cannot be recorded");
    record(*c);
    return MSA_OK;
}

#define ENTRY_1(op)                                                                                \
    static msa_status fake_##op(msa_context *ctx, const msa_##op##_args *args, void *workspace)    \
    {                                                                                              \
        call c = {.id = ID_##op, .workspace = workspace, .args.op = *args};                        \
        return take(ctx, &c);                                                                      \
    }
#define ENTRY_0(op)                                                                                \
    static msa_status fake_##op(msa_context *ctx, const msa_##op##_args *args)                     \
    {                                                                                              \
        call c = {.id = ID_##op, .workspace = NULL, .args.op = *args};                             \
        return take(ctx, &c);                                                                      \
    }
#define ENTRY(op, workspace) ENTRY_##workspace(op)
OPERATORS(ENTRY)

/* ---- recordings --------------------------------------------------------------------------- */

static msa_status graph_begin(msa_context *ctx)
{
    (void)ctx;
    assert_null(device.recording);
    device.recording = calloc(1, sizeof(*device.recording));
    assert_non_null(device.recording);
    return MSA_OK;
}

static void graph_destroy(msa_context *ctx, msa_graph *graph)
{
    (void)ctx;
    free(graph->calls);
    free(graph);
}

static msa_status graph_end(msa_context *ctx, msa_graph **out)
{
    msa_graph *graph = device.recording;
    assert_non_null(graph);
    device.recording = NULL;
    if (!out) {
        graph_destroy(ctx, graph);
        return MSA_OK;
    }
    device.counts.n_recordings++;
    *out = graph;
    return MSA_OK;
}

static msa_status graph_launch(msa_context *ctx, msa_graph *graph)
{
    assert_null(device.recording);
    device.counts.n_launches++;
    for (size_t i = 0; i < graph->n_calls; i++) MSA_TRY(run(ctx, &graph->calls[i]));
    return MSA_OK;
}

/* ---- opening ------------------------------------------------------------------------------ */

void fake_device_open(msa_context *ctx, size_t memory_bytes)
{
    if (device.memory) assert_int_equal(munmap(device.memory, device.bytes), 0);
    memset(&device, 0, sizeof(device));
    device.bytes = memory_bytes;
    void *memory = mmap(NULL, memory_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(memory != MAP_FAILED);
    device.memory = memory;
    device.table = *ctx->backend;
    device.table.name = "fake";
    device.table.device_memory = 1;
    device.table.memory_alloc = memory_alloc;
    device.table.memory_free = memory_free;
    device.table.memory_copy = memory_copy;
    device.table.memory_alloc_host = memory_alloc_host;
    device.table.memory_free_host = memory_free_host;
    device.table.memory_info = memory_info;
    device.table.synchronize = synchronize;
    device.table.graph_begin = graph_begin;
    device.table.graph_end = graph_end;
    device.table.graph_launch = graph_launch;
    device.table.graph_destroy = graph_destroy;
#define SET_ENTRY(op, workspace) device.table.op = fake_##op;
    OPERATORS(SET_ENTRY)
#undef SET_ENTRY
    ctx->backend = &device.table;
}

fake_device_counts *fake_device(void)
{
    return &device.counts;
}

void fake_device_refuse_recording(int refuse)
{
    device.refuse = refuse;
}
