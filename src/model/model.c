/* Opening a model folder, and what can be asked about it. */
#include "base/alloc.h"
#include "base/error.h"
#include "model/checkpoint.h"
#include "model/config_attention.h"
#include "model/files.h"
#include "model/json.h"
#include "model/layout.h"
#include "model/verify.h"
#include "model/weights.h"
#include "msa/memory.h"

#include <string.h>

#define GENERATION_FILE      "generation_config.json"
#define GENERATION_MAX_BYTES ((size_t)1 << 20)

/* ---- generation_config.json ---------------------------------------------------------------------
 */

/* An optional number in low..high; null and absent keep the default. */
static msa_status read_float(const msa__json *root, const char *key, double low, double high,
                             float *out)
{
    const msa__json *value = msa__json_get(root, key);
    double number;
    if (!value || value->type == MSA__JSON_NULL) return MSA_OK;
    MSA_TRY(msa__json_double(value, &number));
    if (number < low || number > high) {
        return msa__json_fail(value, MSA_EFORMAT, "must be in %g..%g", low, high);
    }
    *out = (float)number;
    return MSA_OK;
}

static msa_status parse_generation(msa_generation_config *g, const msa__json *root)
{
    const msa__json *sample = msa__json_get(root, "do_sample"),
                    *topk = msa__json_get(root, "top_k");
    int32_t ids[8], n_ids;
    MSA_TRY(msa__json_type_is(root, MSA__JSON_OBJECT));
    if (sample && sample->type != MSA__JSON_NULL) MSA_TRY(msa__json_bool(sample, &g->do_sample));
    if (topk && topk->type != MSA__JSON_NULL) {
        MSA_TRY(msa__json_int32(topk, 0, INT32_MAX, &g->top_k));
    }
    MSA_TRY(read_float(root, "temperature", 0, 100, &g->temperature));
    MSA_TRY(read_float(root, "top_p", 0, 1, &g->top_p));
    MSA_TRY(read_float(root, "repetition_penalty", 0.01, 100, &g->repetition_penalty));
    MSA_TRY(msa__json_token_ids(root, "bos_token_id", ids, &n_ids));
    if (n_ids > 0) g->bos_token_id = ids[0];
    MSA_TRY(msa__json_token_ids(root, "eos_token_id", ids, &n_ids));
    if (n_ids > 0) {
        g->n_eos = n_ids;
        memcpy(g->eos_token_ids, ids, sizeof(ids[0]) * (size_t)n_ids);
    }
    return MSA_OK;
}

/* Without the file: greedy, and the tokens of config.json. */
static msa_status read_generation(msa_generation_config *g, const msa__config *config,
                                  const char *dir)
{
    char path[1024];
    const msa__json *root;
    msa_generation_config_init(g);
    g->temperature = g->top_p = g->repetition_penalty = 1;
    g->bos_token_id = config->bos_token_id;
    g->n_eos = config->n_eos;
    memcpy(g->eos_token_ids, config->eos_token_ids, sizeof(g->eos_token_ids));
    MSA_TRY(msa__path_join(path, sizeof(path), dir, GENERATION_FILE));
    if (!msa__file_exists(path)) return MSA_OK;
    MSA_TRY(msa__json_read(&root, NULL, dir, GENERATION_FILE, GENERATION_MAX_BYTES));
    msa_status status = parse_generation(g, root);
    msa__json_free(root);
    return status;
}

/* ---- opening
 * ------------------------------------------------------------------------------------- */

static msa_status open_parts(msa_model *model, const char *dir)
{
    msa__counts counts;
    MSA_TRY(msa__config_read(&model->config, dir));
    MSA_TRY(read_generation(&model->generation, &model->config, dir));
    MSA_TRY(msa__weights_open(&model->weights, &model->config, dir,
                              msa__context_allocator(model->ctx)));
    msa__layout_count(&model->config, &counts);
    model->n_parameters = counts.n_parameters;
    model->n_active_parameters = counts.n_active_parameters;
    msa__weights_count(&model->weights, &model->config, &model->weight_bytes,
                       &model->active_weight_bytes);
    return MSA_OK;
}

msa_status msa_model_open(msa_model **out, msa_context *ctx, const char *dir)
{
    if (!out || !ctx || !dir) {
        return MSA_FAIL(MSA_EINVAL, "model_open: %s = NULL, must be given",
                        !out   ? "out"
                        : !ctx ? "ctx"
                               : "dir");
    }
    *out = NULL;
    const msa_allocator *allocator = msa__context_allocator(ctx);
    msa_model *model = allocator->alloc(allocator->user, sizeof(*model), 64);
    if (!model) return MSA_FAIL(MSA_ENOMEM, "model_open: no memory for the model");
    memset(model, 0, sizeof(*model));
    model->ctx = ctx;
    msa_status status = open_parts(model, dir);
    if (status != MSA_OK) {
        msa_model_close(model);
        return status;
    }
    *out = model;
    return MSA_OK;
}

void msa_model_close(msa_model *model)
{
    if (!model) return;
    const msa_allocator *allocator = msa__context_allocator(model->ctx);
    msa__device_weights_free(&model->device);
    if (model->weights.checkpoint) msa__weights_close(&model->weights);
    msa__config_free(&model->config);
    allocator->free(allocator->user, model, sizeof(*model));
}

msa_status msa_model_load(msa_model *model, msa_progress_fn progress, void *user)
{
    if (!model) return MSA_FAIL(MSA_EINVAL, "model_load: model = NULL, must be an open model");
    if (!msa_context_uses_device_memory(model->ctx) || model->device.memory) return MSA_OK;
    return msa__device_weights_load(&model->device, &model->weights, model->ctx, progress, user);
}

/* ---- questions
 * ------------------------------------------------------------------------------------ */

/* Fill a caller's struct of its own size; ours starts with struct_size too. */
static msa_status give_struct(const char *function, void *caller, const void *ours, size_t our_size)
{
    uint32_t size = 0;
    if (caller) memcpy(&size, caller, sizeof(size));
    if (size < 2 * sizeof(uint32_t)) {
        return MSA_FAIL(MSA_EINVAL, "%s: struct_size = %u, must be set by its init function",
                        function, size);
    }
    size_t copied = size < our_size ? size : our_size;
    memcpy((char *)caller + sizeof(size), (const char *)ours + sizeof(size), copied - sizeof(size));
    return MSA_OK;
}

static void describe(const msa__config *c, const msa__counts *counts, msa_model_info *info)
{
    msa_model_info_init(info);
    memcpy(info->architecture, c->architecture, sizeof(info->architecture));
    info->n_layers = c->n_layers;
    info->n_sparse_layers = msa__config_count_attention(c, MSA__ATTENTION_MSA);
    for (int32_t i = 0; i < c->n_layers; i++) {
        info->n_moe_layers += c->layers[i].moe;
    }
    info->hidden_size = c->hidden_size;
    info->vocab_size = c->vocab_size;
    info->n_q_heads = c->n_q_heads;
    info->n_kv_heads = c->n_kv_heads;
    info->head_dim = c->head_dim;
    info->index_dim = c->index_dim;
    info->block_size = c->block_size;
    info->topk_blocks = c->topk_blocks;
    info->n_init_blocks = c->n_init_blocks;
    info->n_local_blocks = c->n_local_blocks;
    info->n_experts = c->n_experts;
    info->n_experts_per_token = c->n_experts_per_token;
    info->n_shared_experts = c->n_shared_experts;
    info->expert_width = c->expert_width;
    info->shared_width = c->shared_width;
    info->dense_width = c->dense_width;
    info->max_positions = c->max_positions;
    info->n_parameters = counts->n_parameters;
    info->n_active_parameters = counts->n_active_parameters;
    info->weight_bytes = counts->weight_bytes;
    info->active_weight_bytes = counts->active_weight_bytes;
    if (c->mxfp8) strcpy(info->quantization, "mxfp8");
    info->n_kv_layers = c->n_layers - msa__config_count_attention(c, MSA__ATTENTION_LIGHTNING);
    info->n_index_layers = msa__config_count_index(c);
    info->n_mean_layers = msa__config_count_attention(c, MSA__ATTENTION_MOBA) +
                          msa__config_count_attention(c, MSA__ATTENTION_MOBA_GROUP);
    /* the newest and the one before it */
    info->state_bytes = 2 * msa__config_state_floats(c) * (int64_t)sizeof(float);
}

msa_status msa_model_get_info(const msa_model *model, msa_model_info *info)
{
    msa_model_info ours;
    msa__counts counts = {model->n_parameters, model->n_active_parameters, model->weight_bytes,
                          model->active_weight_bytes};
    describe(&model->config, &counts, &ours);
    return give_struct("model_get_info", info, &ours, sizeof(ours));
}

msa_status msa_model_info_from_config(const char *dir, msa_model_info *info)
{
    if (!dir) return MSA_FAIL(MSA_EINVAL, "model_info_from_config: dir = NULL, must be given");
    msa__config config;
    msa__counts counts;
    msa_model_info ours;
    MSA_TRY(msa__config_read(&config, dir));
    msa__layout_count(&config, &counts);
    describe(&config, &counts, &ours);
    msa__config_free(&config);
    return give_struct("model_info_from_config", info, &ours, sizeof(ours));
}

static msa_status check_layer(const char *function, const msa_model *model, int32_t layer)
{
    if (layer >= 0 && layer < model->config.n_layers) return MSA_OK;
    return MSA_FAIL(MSA_EINVAL, "%s: layer = %d, must be in 0..%d", function, layer,
                    model->config.n_layers - 1);
}

msa_status msa_model_layer_attention(const msa_model *model, int32_t layer, const char **name)
{
    MSA_TRY(check_layer("model_layer_attention", model, layer));
    *name = msa__attention_name(model->config.layers[layer].attention);
    return MSA_OK;
}

msa_status msa_model_layer_kind(const msa_model *model, int32_t layer, int32_t *sparse_attention,
                                int32_t *moe)
{
    MSA_TRY(check_layer("model_layer_kind", model, layer));
    *sparse_attention = model->config.layers[layer].attention == MSA__ATTENTION_MSA;
    *moe = model->config.layers[layer].moe;
    return MSA_OK;
}

msa_status msa_model_generation_config(const msa_model *model, msa_generation_config *config)
{
    return give_struct("model_generation_config", config, &model->generation,
                       sizeof(model->generation));
}

msa_status msa_model_verify(const msa_model *model, msa_progress_fn progress, void *user)
{
    return msa__checkpoint_verify(model->weights.checkpoint, progress, user);
}
