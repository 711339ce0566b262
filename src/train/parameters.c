/* The arrays of a model in training and the views of them; see parameters.h. */
#include "train/parameters.h"

#include "base/error.h"
#include "base/numeric.h"
#include "msa/memory.h"

#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#define ALIGNMENT 64        /* elements */
#define ZEROS     (1 << 18) /* elements of the first zeros */
#define ROUNDED   (1 << 16) /* elements rounded at a time */

/* ---- the list ----------------------------------------------------------------------------- */

static int32_t is_index_slot(const msa__tensor_spec *spec)
{
    static const size_t slots[] = {
        offsetof(msa__layer_weights, index_q),      offsetof(msa__layer_weights, index_k),
        offsetof(msa__layer_weights, index_q_norm), offsetof(msa__layer_weights, index_k_norm),
        offsetof(msa__layer_weights, index_k_bias), offsetof(msa__layer_weights, index_weights)};
    if (spec->layer < 0 || spec->expert >= 0) return 0;
    for (size_t i = 0; i < sizeof(slots) / sizeof(slots[0]); i++) {
        if (spec->slot == slots[i]) return 1;
    }
    return 0;
}

static int32_t group_of(const msa__tensor_spec *spec)
{
    if (spec->kind == MSA__KIND_ROUTER_BIAS) return MSA__GROUP_ROUTER_BIAS;
    if (is_index_slot(spec)) {
        return spec->columns ? MSA__GROUP_INDEX_DECAYED : MSA__GROUP_INDEX_UNDECAYED;
    }
    return spec->columns ? MSA__GROUP_DECAYED : MSA__GROUP_UNDECAYED;
}

static msa_status count_one(void *user, const msa__tensor_spec *spec)
{
    (void)spec;
    ++*(int32_t *)user;
    return MSA_OK;
}

static msa_status list_one(void *user, const msa__tensor_spec *spec)
{
    msa__parameters *p = user;
    msa__parameter *one = &p->list[p->n_list++];
    one->spec = *spec;
    one->group = group_of(spec);
    one->n = spec->rows * (spec->columns ? spec->columns : 1);
    return MSA_OK;
}

static msa_status make_list(msa__parameters *p)
{
    int32_t n = 0;
    MSA_TRY(msa__layout_visit(p->config, count_one, &n));
    p->list = calloc((size_t)n, sizeof(*p->list));
    if (!p->list) return MSA_FAIL(MSA_ENOMEM, "train: no memory for the list of tensors");
    MSA_TRY(msa__layout_visit(p->config, list_one, p));
    for (int32_t group = 0; group <= MSA__GROUP_ROUTER_BIAS; group++) {
        int64_t *end = group == MSA__GROUP_ROUTER_BIAS ? &p->n_router_bias : &p->n;
        if (group < MSA__N_GROUPS) p->group_begin[group] = *end;
        for (int32_t i = 0; i < p->n_list; i++) {
            if (p->list[i].group != group) continue;
            p->list[i].offset = *end;
            *end += (p->list[i].n + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
        }
    }
    p->group_begin[MSA__N_GROUPS] = p->n;
    return MSA_OK;
}

/* ---- views -------------------------------------------------------------------------------- */

static msa_status create_layers(const msa__config *config, msa__weights *weights)
{
    weights->n_layers = config->n_layers;
    weights->n_experts = config->n_experts;
    weights->layers = calloc((size_t)config->n_layers, sizeof(*weights->layers));
    if (!weights->layers) return MSA_FAIL(MSA_ENOMEM, "train: no memory for the layers");
    for (int32_t i = 0; i < config->n_layers; i++) {
        if (!config->layers[i].moe) continue;
        msa_mlp_weights *experts = calloc((size_t)config->n_experts, sizeof(*experts));
        if (!experts) return MSA_FAIL(MSA_ENOMEM, "train: no memory for the experts");
        weights->layers[i].experts = experts;
    }
    return MSA_OK;
}

static void free_layers(msa__weights *weights)
{
    for (int32_t i = 0; weights->layers && i < weights->n_layers; i++) {
        free(weights->layers[i].experts);
    }
    free(weights->layers);
}

static msa_tensor *find_view(msa__weights *weights, const msa__tensor_spec *spec)
{
    return (msa_tensor *)(uintptr_t)msa__weights_view(weights, spec);
}

static msa_tensor view(const void *data, msa_dtype dtype, const msa__tensor_spec *spec)
{
    return msa_tensor_make(data, dtype, spec->columns ? 2 : 1, spec->rows, spec->columns, 0, 0);
}

static void bind(msa__parameters *p)
{
    for (int32_t i = 0; i < p->n_list; i++) {
        const msa__parameter *one = &p->list[i];
        msa_tensor *weight = find_view(&p->weights, &one->spec);
        if (one->group == MSA__GROUP_ROUTER_BIAS) {
            *weight = view(p->router_bias + one->offset, MSA_DTYPE_F32, &one->spec);
            continue;
        }
        if (one->spec.kind == MSA__KIND_ROUTER) {
            *weight = view(p->masters + one->offset, MSA_DTYPE_F32, &one->spec);
        } else {
            char *copies = p->copies;
            *weight = view(copies + (size_t)one->offset * msa_dtype_bytes(p->dtype), p->dtype,
                           &one->spec);
        }
        *find_view(&p->gradient, &one->spec) =
            view(p->gradients + one->offset, MSA_DTYPE_F32, &one->spec);
    }
    if (p->config->tie_embeddings) {
        p->weights.head.w = p->weights.embedding;
        p->gradient.head.w = p->gradient.embedding;
    }
}

msa_mlp_gradients msa__mlp_gradients(const msa_mlp_weights *views)
{
    return (msa_mlp_gradients){views->gate.w, views->up.w, views->down.w};
}

static msa_status list_expert_gradients(msa__parameters *p)
{
    const msa__config *c = p->config;
    p->expert_gradients = calloc((size_t)c->n_layers, sizeof(*p->expert_gradients));
    if (!p->expert_gradients) return MSA_FAIL(MSA_ENOMEM, "train: no memory for the layers");
    for (int32_t i = 0; i < c->n_layers; i++) {
        if (!c->layers[i].moe) continue;
        msa_mlp_gradients *list = calloc((size_t)c->n_experts, sizeof(*list));
        if (!list) return MSA_FAIL(MSA_ENOMEM, "train: no memory for the experts");
        p->expert_gradients[i] = list;
        for (int32_t e = 0; e < c->n_experts; e++) {
            list[e] = msa__mlp_gradients(&p->gradient.layers[i].experts[e]);
        }
    }
    return MSA_OK;
}

/* ---- memory ------------------------------------------------------------------------------- */

static msa_status allocate(const msa__parameters *p, const char *what, int64_t n, size_t element,
                           void *out)
{
    void *memory = NULL;
    msa_status status = msa_memory_alloc(p->ctx, (size_t)n * element, &memory);
    if (status == MSA_ENOMEM || status == MSA_EDEVMEM) {
        return MSA_FAIL(status, "train: no memory for %lld bytes of %s",
                        (long long)n * (long long)element, what);
    }
    memcpy(out, &memory, sizeof(memory));
    return status;
}

/* From the piece of zeros, then what is done is copied behind itself: few copies, however long. */
static msa_status zero(const msa__parameters *p, float *array, int64_t n)
{
    const float *from = p->zeros;
    for (int64_t done = 0, piece = ZEROS; done < n; done += piece, from = array) {
        piece = done > ZEROS ? done : ZEROS;
        if (piece > n - done) piece = n - done;
        MSA_TRY(msa_memory_copy(p->ctx, array + done, from, (size_t)piece * sizeof(float)));
    }
    return MSA_OK;
}

static msa_status create(msa__parameters *p)
{
    static const float zeros[ZEROS];
    if (p->dtype != MSA_DTYPE_F32 && p->dtype != MSA_DTYPE_BF16) {
        return MSA_FAIL(MSA_EUNSUPPORTED, "train: dtype = %s, must be f32 or bf16",
                        msa_dtype_name(p->dtype));
    }
    if (p->config->mxfp8) {
        return MSA_FAIL(MSA_EUNSUPPORTED, "train: quantization_config: MXFP8 weights cannot be "
                                          "trained, must be bf16 or f32");
    }
    MSA_TRY(make_list(p));
    MSA_TRY(create_layers(p->config, &p->weights));
    MSA_TRY(create_layers(p->config, &p->gradient));
    p->rounded = malloc(ROUNDED * sizeof(*p->rounded));
    if (!p->rounded) return MSA_FAIL(MSA_ENOMEM, "train: no memory for rounded values");
    MSA_TRY(allocate(p, "zeros", ZEROS, sizeof(float), &p->zeros));
    MSA_TRY(msa_memory_upload(p->ctx, p->zeros, zeros, sizeof(zeros)));
    MSA_TRY(allocate(p, "parameters", p->n, sizeof(float), &p->masters));
    MSA_TRY(allocate(p, "gradients", p->n, sizeof(float), &p->gradients));
    MSA_TRY(allocate(p, "optimizer state", p->n, sizeof(float), &p->m));
    MSA_TRY(allocate(p, "optimizer state", p->n, sizeof(float), &p->v));
    p->copies = p->masters;
    if (p->dtype != MSA_DTYPE_F32) {
        MSA_TRY(allocate(p, "weights", p->n, msa_dtype_bytes(p->dtype), &p->copies));
    }
    MSA_TRY(allocate(p, "router biases", p->n_router_bias ? p->n_router_bias : 1, sizeof(float),
                     &p->router_bias));
    /* Gaps between tensors stay zero in all of them. */
    float *arrays[] = {p->masters, p->gradients, p->m, p->v};
    for (int i = 0; i < 4; i++) MSA_TRY(zero(p, arrays[i], p->n));
    MSA_TRY(zero(p, p->router_bias, p->n_router_bias));
    bind(p);
    return list_expert_gradients(p);
}

msa_status msa__parameters_create(msa__parameters *p, msa_context *ctx, const msa__config *config,
                                  msa_dtype dtype)
{
    memset(p, 0, sizeof(*p));
    p->ctx = ctx;
    p->config = config;
    p->dtype = dtype;
    msa_status status = create(p);
    if (status != MSA_OK) msa__parameters_free(p);
    return status;
}

void msa__parameters_free(msa__parameters *p)
{
    if (!p->ctx) return;
    size_t bytes = (size_t)p->n * sizeof(float);
    if (p->copies != p->masters) {
        msa_memory_free(p->ctx, p->copies, (size_t)p->n * msa_dtype_bytes(p->dtype));
    }
    msa_memory_free(p->ctx, p->masters, bytes);
    msa_memory_free(p->ctx, p->gradients, bytes);
    msa_memory_free(p->ctx, p->m, bytes);
    msa_memory_free(p->ctx, p->v, bytes);
    msa_memory_free(p->ctx, p->router_bias,
                    (size_t)(p->n_router_bias ? p->n_router_bias : 1) * sizeof(float));
    msa_memory_free(p->ctx, p->zeros, ZEROS * sizeof(float));
    for (int32_t i = 0; p->expert_gradients && i < p->config->n_layers; i++) {
        free(p->expert_gradients[i]);
    }
    free(p->expert_gradients);
    free_layers(&p->weights);
    free_layers(&p->gradient);
    free(p->list);
    free(p->rounded);
    memset(p, 0, sizeof(*p));
}

/* ---- values ------------------------------------------------------------------------------- */

msa_status msa__parameters_zero(const msa__parameters *p, float *array)
{
    return zero(p, array, p->n);
}

static float *master_of(const msa__parameters *p, const msa__parameter *one)
{
    float *base = one->group == MSA__GROUP_ROUTER_BIAS ? p->router_bias : p->masters;
    return base + one->offset;
}

msa_status msa__parameters_put(msa__parameters *p, const msa__parameter *one, int64_t first,
                               int64_t n, const float *values)
{
    MSA_TRY(
        msa_memory_upload(p->ctx, master_of(p, one) + first, values, (size_t)n * sizeof(float)));
    if (one->group == MSA__GROUP_ROUTER_BIAS || p->dtype == MSA_DTYPE_F32) return MSA_OK;
    uint16_t *copies = (uint16_t *)p->copies + one->offset + first;
    for (int64_t at = 0; at < n; at += ROUNDED) {
        int64_t piece = n - at < ROUNDED ? n - at : ROUNDED;
        for (int64_t i = 0; i < piece; i++) p->rounded[i] = f32_to_bf16(values[at + i]);
        MSA_TRY(msa_memory_upload(p->ctx, copies + at, p->rounded,
                                  (size_t)piece * sizeof(*p->rounded)));
    }
    return MSA_OK;
}

msa_status msa__parameters_get(const msa__parameters *p, const msa__parameter *one, int64_t first,
                               int64_t n, float *values)
{
    return msa_memory_download(p->ctx, values, master_of(p, one) + first,
                               (size_t)n * sizeof(float));
}
