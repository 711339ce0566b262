/* What ties a session file to an engine: shapes, dtypes and a fingerprint of the model. */
#include "engine/session_file.h"

#include "base/error.h"
#include "base/overflow.h"
#include "model/checksum.h"

#include <string.h>

/* ---- fingerprint -------------------------------------------------------------------------- */

#define SAMPLE_BYTES                                                                               \
    4096 /* of every matrix: enough to tell checkpoints apart, one page to read                    \
          */

static uint64_t add_tensor(uint64_t sum, const msa_tensor *t)
{
    if (!t->data) return msa__checksum(sum, NULL, 0);
    size_t bytes = msa_dtype_bytes(t->dtype);
    for (int32_t i = 0; i < t->n_dims; i++) bytes *= (size_t)t->shape[i];
    return msa__checksum(sum, t->data, bytes < SAMPLE_BYTES ? bytes : SAMPLE_BYTES);
}

static uint64_t add_layer(uint64_t sum, const msa__layer_weights *w)
{
    const msa_tensor *tensors[] = {&w->input_norm,   &w->post_attention_norm,
                                   &w->q.w,          &w->k.w,
                                   &w->v.w,          &w->o.w,
                                   &w->q_norm,       &w->k_norm,
                                   &w->index_q.w,    &w->index_k.w,
                                   &w->mlp.gate.w,   &w->router,
                                   &w->shared.gate.w};
    for (size_t i = 0; i < sizeof(tensors) / sizeof(tensors[0]); i++) {
        sum = add_tensor(sum, tensors[i]);
    }
    return sum;
}

/* What only DSA layers have. */
static uint64_t add_token_index(uint64_t sum, const msa__config *c, const msa__weights *w)
{
    double numbers[] = {c->dsa_heads, c->dsa_topk};
    if (c->dsa_topk == 0) return sum;
    for (int32_t i = 0; i < c->n_layers; i++) {
        sum = add_tensor(sum, &w->layers[i].index_weights.w);
        sum = add_tensor(sum, &w->layers[i].index_k_norm);
        sum = add_tensor(sum, &w->layers[i].index_k_bias);
    }
    return msa__checksum(sum, numbers, sizeof(numbers));
}

/* The numbers of attention kinds that M3 does not have, where a layer is of one. */
static uint64_t add_other_kinds(uint64_t sum, const msa__config *c)
{
    double numbers[] = {c->window, c->window_blocks, c->moba_pages, c->moba_topk};
    int32_t n_dense = msa__config_count_attention(c, MSA__ATTENTION_DENSE);
    int32_t n_msa = msa__config_count_attention(c, MSA__ATTENTION_MSA);
    return n_dense + n_msa == c->n_layers ? sum : msa__checksum(sum, numbers, sizeof(numbers));
}

static uint64_t fingerprint(const msa_model *model)
{
    const msa__config *c = &model->config;
    const msa__weights *w = &model->weights;
    double numbers[] = {c->rope_theta,
                        (double)c->rms_norm_eps,
                        c->norm_one_plus,
                        c->qk_norm,
                        c->rotary_dim,
                        c->hidden_size,
                        c->n_q_heads,
                        c->n_experts,
                        c->n_experts_per_token,
                        (double)c->routed_scaling,
                        c->topk_blocks,
                        c->n_init_blocks,
                        c->n_local_blocks,
                        c->activation.kind,
                        (double)c->activation.alpha,
                        (double)c->activation.beta,
                        (double)c->activation.limit};
    uint64_t sum = msa__checksum(MSA__CHECKSUM_START, numbers, sizeof(numbers));
    sum = msa__checksum(sum, c->layers, (size_t)c->n_layers * sizeof(c->layers[0]));
    sum = add_other_kinds(sum, c);
    sum = add_token_index(sum, c, w);
    sum = add_tensor(sum, &w->embedding);
    sum = add_tensor(sum, &w->final_norm);
    for (int32_t i = 0; i < c->n_layers; i++) sum = add_layer(sum, &w->layers[i]);
    return sum;
}

/* ---- header ------------------------------------------------------------------------------- */

/* Of one token. */
static size_t lane_bytes(const msa_tensor *lane)
{
    if (!lane->data) return 0;
    size_t n_heads = lane->n_dims == 4 ? (size_t)lane->shape[1] : 1;
    return n_heads * (size_t)lane->shape[lane->n_dims - 1] * msa_dtype_bytes(lane->dtype);
}

static msa_status file_bytes(const msa_engine *engine, int64_t n_tokens, int32_t has_logits,
                             uint64_t *total)
{
    size_t logits = has_logits ? (size_t)engine->model->config.vocab_size * sizeof(float) : 0;
    size_t per_token = sizeof(int32_t);
    for (int32_t i = 0; i < engine->model->config.n_layers; i++) {
        const msa_kv_view *view = &engine->forward.views[i];
        per_token += lane_bytes(&view->k) + lane_bytes(&view->v) + lane_bytes(&view->k_index);
    }
    size_t bytes, state = (size_t)engine->forward.states.stride[0] * sizeof(float);
    if (msa__mul_overflow((size_t)n_tokens, per_token, &bytes) ||
        msa__add_overflow(bytes, logits + state, &bytes) ||
        msa__add_overflow(bytes, sizeof(msa__session_header) + sizeof(uint64_t), &bytes)) {
        return MSA_FAIL(MSA_EFORMAT, "session file: n_tokens = %lld, its size overflows",
                        (long long)n_tokens);
    }
    *total = bytes;
    return MSA_OK;
}

msa_status msa__session_header_make(msa__session_header *header, const msa_engine *engine,
                                    int64_t n_tokens, int32_t has_logits)
{
    const msa__config *config = &engine->model->config;
    memset(header, 0, sizeof(*header));
    memcpy(header->magic, MSA__SESSION_MAGIC, sizeof(header->magic));
    header->version = MSA__SESSION_VERSION;
    header->header_bytes = (uint32_t)sizeof(*header);
    header->model = fingerprint(engine->model);
    header->n_tokens = n_tokens;
    header->has_logits = has_logits;
    header->vocab_size = config->vocab_size;
    header->n_layers = config->n_layers;
    header->n_kv_heads = config->n_kv_heads;
    header->head_dim = config->head_dim;
    for (int32_t i = 0; i < config->n_layers; i++) {
        if (engine->forward.views[i].k_index.data) header->index_dim = config->index_dim;
    }
    header->block_size = config->block_size;
    header->k_dtype = engine->args.k_dtype;
    header->v_dtype = engine->args.v_dtype;
    header->k_index_dtype = header->index_dim ? engine->args.k_index_dtype : 0;
    return file_bytes(engine, n_tokens, has_logits, &header->file_bytes);
}

static msa_status check_shape(const char *path, const char *name, int32_t value, int32_t ours)
{
    if (value == ours) return MSA_OK;
    return MSA_FAIL(MSA_EVERSION, "session file: %s: %s = %d, must equal this engine's %d", path,
                    name, value, ours);
}

static msa_status check_dtype(const char *path, const char *name, msa_dtype value, msa_dtype ours)
{
    if (value == ours) return MSA_OK;
    return MSA_FAIL(MSA_EVERSION, "session file: %s: %s = %d (%s), must equal this engine's %s",
                    path, name, value, msa_dtype_name(value), msa_dtype_name(ours));
}

msa_status msa__session_header_check(const msa__session_header *header, const msa_engine *engine,
                                     const char *path, uint64_t actual_bytes)
{
    if (memcmp(header->magic, MSA__SESSION_MAGIC, sizeof(header->magic))) {
        return MSA_FAIL(MSA_EFORMAT, "session file: %s: magic, must be " MSA__SESSION_MAGIC, path);
    }
    if (header->version != MSA__SESSION_VERSION || header->header_bytes != sizeof(*header)) {
        return MSA_FAIL(MSA_EVERSION, "session file: %s: version = %u, must be %d", path,
                        header->version, MSA__SESSION_VERSION);
    }
    if (header->has_logits != 0 && header->has_logits != 1) {
        return MSA_FAIL(MSA_EFORMAT, "session file: %s: has_logits = %d, must be 0 or 1", path,
                        header->has_logits);
    }
    if (header->n_tokens < 0) {
        return MSA_FAIL(MSA_EFORMAT, "session file: %s: n_tokens = %lld, must not be negative",
                        path, (long long)header->n_tokens);
    }
    if (header->n_tokens > engine->session_tokens) {
        return MSA_FAIL(MSA_EBUSY, "session file: %s: n_tokens = %lld, a session here holds %lld",
                        path, (long long)header->n_tokens, (long long)engine->session_tokens);
    }
    msa__session_header ours;
    MSA_TRY(msa__session_header_make(&ours, engine, header->n_tokens, header->has_logits));
    MSA_TRY(check_shape(path, "n_layers", header->n_layers, ours.n_layers));
    MSA_TRY(check_shape(path, "vocab_size", header->vocab_size, ours.vocab_size));
    MSA_TRY(check_shape(path, "n_kv_heads", header->n_kv_heads, ours.n_kv_heads));
    MSA_TRY(check_shape(path, "head_dim", header->head_dim, ours.head_dim));
    MSA_TRY(check_shape(path, "index_dim", header->index_dim, ours.index_dim));
    MSA_TRY(check_shape(path, "block_size", header->block_size, ours.block_size));
    MSA_TRY(check_dtype(path, "k_dtype", header->k_dtype, ours.k_dtype));
    MSA_TRY(check_dtype(path, "v_dtype", header->v_dtype, ours.v_dtype));
    MSA_TRY(check_dtype(path, "k_index_dtype", header->k_index_dtype, ours.k_index_dtype));
    if (header->model != ours.model) {
        return MSA_FAIL(MSA_EVERSION,
                        "session file: %s: model fingerprint = %016llx, must equal this engine's "
                        "%016llx",
                        path, (unsigned long long)header->model, (unsigned long long)ours.model);
    }
    if (header->file_bytes != ours.file_bytes || actual_bytes != ours.file_bytes) {
        return MSA_FAIL(MSA_EFORMAT, "session file: %s: %llu bytes, must be %llu for %lld tokens",
                        path, (unsigned long long)actual_bytes, (unsigned long long)ours.file_bytes,
                        (long long)header->n_tokens);
    }
    return MSA_OK;
}
