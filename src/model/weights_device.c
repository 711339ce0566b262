/* Weights on a device: one allocation, filled from the mapped files tensor by tensor.
 *
 * The tensors of a layer's experts lie at equal distances: gate, up and down of one expert, then
 * those of the next.
 */
#include "base/alloc.h"
#include "base/error.h"
#include "model/weights.h"
#include "msa/memory.h"

#include <string.h>

#define ALIGNMENT   256
#define PIECE_BYTES ((size_t)64 << 20) /* between two reports of progress */

/* Called for every tensor there is, in the order they lie on the device. */
typedef msa_status (*visit_fn)(void *user, msa_tensor *tensor);

static msa_status visit_tensor(msa_tensor *t, visit_fn visit, void *user)
{
    return t->data ? visit(user, t) : MSA_OK;
}

static msa_status visit_weight(msa_weight *w, visit_fn visit, void *user)
{
    MSA_TRY(visit_tensor(&w->w, visit, user));
    return visit_tensor(&w->scales, visit, user);
}

static msa_status visit_mlp(msa_mlp_weights *mlp, visit_fn visit, void *user)
{
    MSA_TRY(visit_weight(&mlp->gate, visit, user));
    MSA_TRY(visit_weight(&mlp->up, visit, user));
    return visit_weight(&mlp->down, visit, user);
}

static msa_status visit_layer(msa__layer_weights *l, int32_t n_experts, visit_fn visit, void *user)
{
    msa_tensor *vectors[] = {
        &l->input_norm,   &l->post_attention_norm, &l->q_norm,     &l->k_norm, &l->index_q_norm,
        &l->index_k_norm, &l->index_k_bias,        &l->heads_norm, &l->router, &l->router_bias};
    msa_weight *matrices[] = {
        &l->q, &l->k, &l->v, &l->o, &l->index_q, &l->index_k, &l->index_weights, &l->output_gate};
    for (size_t i = 0; i < 10; i++) MSA_TRY(visit_tensor(vectors[i], visit, user));
    for (size_t i = 0; i < 8; i++) MSA_TRY(visit_weight(matrices[i], visit, user));
    MSA_TRY(visit_mlp(&l->mlp, visit, user));
    for (int32_t e = 0; l->experts && e < n_experts; e++) {
        MSA_TRY(visit_mlp(&l->experts[e], visit, user));
    }
    return visit_mlp(&l->shared, visit, user);
}

/* The head is left out where it is the embedding. */
static msa_status visit_all(msa__weights *w, visit_fn visit, void *user)
{
    int tied = w->head.w.data == w->embedding.data;
    MSA_TRY(visit_tensor(&w->embedding, visit, user));
    MSA_TRY(visit_tensor(&w->final_norm, visit, user));
    for (int32_t i = 0; i < w->n_layers; i++) {
        MSA_TRY(visit_layer(&w->layers[i], w->n_experts, visit, user));
    }
    return tied ? MSA_OK : visit_weight(&w->head, visit, user);
}

static size_t padded_bytes(const msa_tensor *t, size_t *bytes)
{
    *bytes = msa_dtype_bytes(t->dtype);
    for (int32_t i = 0; i < t->n_dims; i++) *bytes *= (size_t)t->shape[i];
    return (*bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

static msa_status add_bytes(void *user, msa_tensor *t)
{
    size_t bytes;
    *(size_t *)user += padded_bytes(t, &bytes);
    return MSA_OK;
}

typedef struct upload {
    msa_context *ctx;
    unsigned char *next;
    msa_progress_fn progress; /* may be NULL */
    void *user;
    size_t done, total;
} upload;

/* Copy a tensor and let it point at the copy. */
static msa_status move_tensor(void *user, msa_tensor *t)
{
    upload *u = user;
    size_t bytes, padded = padded_bytes(t, &bytes);
    for (size_t first = 0; first < bytes; first += PIECE_BYTES) {
        size_t n = bytes - first < PIECE_BYTES ? bytes - first : PIECE_BYTES;
        const unsigned char *source = t->data;
        MSA_TRY(msa_memory_upload(u->ctx, u->next + first, source + first, n));
        u->done += n;
        if (u->progress) u->progress(u->user, (int64_t)u->done, (int64_t)u->total);
    }
    t->data = u->next;
    u->next += padded;
    return MSA_OK;
}

/* The structs of the mapped weights, with arrays of their own. */
static msa_status copy_structs(msa__weights *copy, const msa__weights *mapped)
{
    const msa_allocator *a = &mapped->allocator;
    size_t layer_bytes = (size_t)mapped->n_layers * sizeof(*copy->layers);
    size_t expert_bytes = (size_t)mapped->n_experts * sizeof(*copy->layers->experts);
    *copy = *mapped;
    copy->checkpoint = NULL;
    copy->unpacked_embedding = NULL;
    copy->layers = a->alloc(a->user, layer_bytes, 64);
    if (!copy->layers) return MSA_FAIL(MSA_ENOMEM, "model_load: no memory for the layers");
    memcpy(copy->layers, mapped->layers, layer_bytes);
    for (int32_t i = 0; i < copy->n_layers; i++) copy->layers[i].experts = NULL;
    for (int32_t i = 0; i < copy->n_layers; i++) {
        if (!mapped->layers[i].experts) continue;
        msa_mlp_weights *experts = a->alloc(a->user, expert_bytes, 64);
        if (!experts) return MSA_FAIL(MSA_ENOMEM, "model_load: no memory for the experts");
        memcpy(experts, mapped->layers[i].experts, expert_bytes);
        copy->layers[i].experts = experts;
    }
    return MSA_OK;
}

static msa_status allocate(msa__device_weights *device)
{
    int64_t free_bytes, total_bytes;
    MSA_TRY(msa_memory_info(device->ctx, &free_bytes, &total_bytes));
    msa_status status = MSA_EDEVMEM;
    if (device->bytes <= (size_t)free_bytes) {
        status = msa_memory_alloc(device->ctx, device->bytes, &device->memory);
    }
    if (status != MSA_EDEVMEM) return status;
    return MSA_FAIL(MSA_EDEVMEM,
                    "model_load: weights of %zu bytes, the device has %lld free of %lld; use a "
                    "smaller or quantised model, or the cpu backend",
                    device->bytes, (long long)free_bytes, (long long)total_bytes);
}

static msa_status load(msa__device_weights *device, const msa__weights *mapped,
                       msa_progress_fn progress, void *user)
{
    MSA_TRY(copy_structs(&device->weights, mapped));
    MSA_TRY(visit_all(&device->weights, add_bytes, &device->bytes));
    MSA_TRY(allocate(device));
    upload u = {device->ctx, device->memory, progress, user, 0, device->bytes};
    MSA_TRY(visit_all(&device->weights, move_tensor, &u));
    if (mapped->head.w.data == mapped->embedding.data) {
        device->weights.head.w.data = device->weights.embedding.data;
    }
    return MSA_OK;
}

msa_status msa__device_weights_load(msa__device_weights *device, const msa__weights *mapped,
                                    msa_context *ctx, msa_progress_fn progress, void *user)
{
    memset(device, 0, sizeof(*device));
    device->ctx = ctx;
    msa_status status = load(device, mapped, progress, user);
    if (status != MSA_OK) msa__device_weights_free(device);
    return status;
}

void msa__device_weights_free(msa__device_weights *device)
{
    if (!device->ctx) return;
    msa_memory_free(device->ctx, device->memory, device->bytes);
    msa__weights_close(&device->weights);
    memset(device, 0, sizeof(*device));
}
