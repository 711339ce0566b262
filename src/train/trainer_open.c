/* Opening a run: configuration, model, data, and the newest checkpoint. */
#include "train/trainer_open.h"

#include "base/alloc.h"
#include "base/error.h"
#include "model/files.h"
#include "model/python_text.h"
#include "train/folders.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CONFIG_MAX_BYTES ((size_t)16 << 20)

/* A whole file as text of msa_free. */
static msa_status read_text(const char *path, char **out, size_t *n)
{
    const msa_allocator *allocator = &msa__default_allocator;
    msa__text text = {0};
    char *bytes;
    MSA_TRY(msa__file_read(path, CONFIG_MAX_BYTES, allocator, &bytes, n));
    msa__text_add(&text, bytes, *n);
    allocator->free(allocator->user, bytes, *n + 1);
    return msa__text_finish(&text, out, n);
}

/* ---- training.json ------------------------------------------------------------------------ */

static msa_status read_training(msa_trainer *t, const msa_trainer_args *args)
{
    size_t bytes;
    const char *name = args->config_path ? args->config_path : "training configuration";
    if (!args->config_path == !args->config_text) {
        return MSA_FAIL(MSA_EINVAL,
                        "trainer: config_path or config_text, one of them must be given");
    }
    if (args->config_path) {
        MSA_TRY(read_text(args->config_path, &t->training_text, &bytes));
    } else {
        msa__text text = {0};
        msa__text_puts(&text, args->config_text);
        MSA_TRY(msa__text_finish(&text, &t->training_text, &bytes));
    }
    return msa__train_config_parse(&t->config, name, t->training_text, bytes);
}

/* ---- the model's shape -------------------------------------------------------------------- */

static msa_status check_stage(const msa_trainer *t, const msa__stage *s)
{
    if (s->length > t->model.max_positions) {
        return MSA_FAIL(MSA_EINVAL,
                        "train: stage %.60s: length = %lld, must be at most %lld by "
                        "model.config's max_position_embeddings",
                        s->name, (long long)s->length, (long long)t->model.max_positions);
    }
    if (msa__config_count_index(&t->model) == 0 && s->attention != MSA__PHASE_DENSE) {
        return MSA_FAIL(MSA_EINVAL,
                        "train: stage %.60s: attention must be \"dense\", the model has "
                        "no MSA or DSA layer",
                        s->name);
    }
    return MSA_OK;
}

/* An object of a config.json, without what says that its weights are quantised: those trained from
 * them are not. */
static void put_unquantized(msa__text *out, const msa__json *object)
{
    const char *before = "{";
    MSA__JSON_EACH(member, object)
    {
        if (!strcmp(member->key, "quantization_config")) continue;
        msa__text_puts(out, before);
        msa__python_json_key(out, member);
        if (member->type == MSA__JSON_OBJECT)
            put_unquantized(out, member);
        else if (out->status == MSA_OK)
            out->status = msa__python_json(out, member);
        before = ", ";
    }
    msa__text_puts(out, before[0] == '{' ? "{}" : "}");
}

/* The config.json of init_from, as it is unless it speaks of quantisation. */
static msa_status read_config_text(msa_trainer *t, size_t *bytes)
{
    char path[MSA__PATH_BYTES], *text;
    const msa__json *root;
    msa__text plain = {0};
    MSA_TRY(msa__path_join(path, sizeof(path), t->config.init_from, "config.json"));
    MSA_TRY(read_text(path, &text, bytes));
    if (!strstr(text, "\"quantization_config\"")) {
        t->config_text = text;
        return MSA_OK;
    }
    msa_status status = msa__json_parse(&root, NULL, path, text, *bytes);
    msa_free(text);
    MSA_TRY(status);
    status = msa__json_type_is(root, MSA__JSON_OBJECT);
    if (status == MSA_OK) {
        put_unquantized(&plain, root);
        status = msa__text_finish(&plain, &t->config_text, bytes);
    }
    msa__json_free(root);
    return status;
}

static msa_status read_model(msa_trainer *t)
{
    const msa__train_config *c = &t->config;
    size_t bytes;
    if (c->model_config) {
        msa__text text = {0};
        text.status = msa__python_json(&text, c->model_config);
        MSA_TRY(msa__text_finish(&text, &t->config_text, &bytes));
    } else {
        MSA_TRY(read_config_text(t, &bytes));
    }
    const msa__json *root;
    MSA_TRY(msa__json_parse(&root, NULL, "model.config", t->config_text, bytes));
    msa_status status = msa__config_parse(&t->model, root);
    msa__json_free(root);
    MSA_TRY(status);
    for (int32_t i = 0; i < c->n_stages; i++) MSA_TRY(check_stage(t, &c->stages[i]));
    return MSA_OK;
}

/* ---- data --------------------------------------------------------------------------------- */

static msa_status open_data(msa_trainer *t, const msa_trainer_args *args)
{
    const msa__train_config *c = &t->config;
    char cache[MSA__PATH_BYTES];
    MSA_TRY(msa__path_join(cache, sizeof(cache), c->output, "tokens"));
    MSA_TRY(msa__folder_make(cache));
    MSA_TRY(
        msa__dataset_open(&t->data, c->data, cache, (uint64_t)c->seed, args->progress, args->user));
    int32_t n_ids = msa_tokenizer_size(msa__dataset_tokenizer(t->data));
    if (n_ids > t->model.vocab_size) {
        return MSA_FAIL(MSA_EINVAL,
                        "train: the tokenizer has %d ids, must be at most %d by "
                        "model.config's vocab_size",
                        n_ids, t->model.vocab_size);
    }
    if (!c->validation_data) return MSA_OK;
    const msa__json *tokenizer = msa__json_get(c->validation_data, "tokenizer");
    if (tokenizer && !msa__json_equals(tokenizer, c->tokenizer)) {
        return msa__json_fail(tokenizer, MSA_EFORMAT, "must be that of data");
    }
    return msa__dataset_open(&t->validation, c->validation_data, cache, (uint64_t)c->seed,
                             args->progress, args->user);
}

/* ---- values ------------------------------------------------------------------------------- */

static msa_status load_weights(msa_trainer *t)
{
    msa__config *config = malloc(sizeof(*config));
    msa__weights weights;
    if (!config) return MSA_FAIL(MSA_ENOMEM, "train: no memory for a configuration");
    msa_status status = msa__config_read(config, t->config.init_from);
    if (status == MSA_OK) {
        status = msa__weights_open(&weights, config, t->config.init_from,
                                   msa__context_allocator(t->ctx));
        if (status == MSA_OK) {
            status = msa__parameters_load(&t->parameters, &weights);
            msa__weights_close(&weights);
        }
        msa__config_free(config);
    }
    free(config);
    return status;
}

msa__snapshot msa__trainer_snapshot(msa_trainer *t)
{
    return (msa__snapshot){.parameters = &t->parameters,
                           .optimizer = &t->optimizer,
                           .progress = &t->progress,
                           .output = t->config.output,
                           .tokenizer = t->config.tokenizer,
                           .config_text = t->config_text,
                           .training_text = t->training_text,
                           .data = msa__dataset_fingerprint(t->data)};
}

static msa_status resume(msa_trainer *t, int64_t step)
{
    msa__snapshot snapshot = msa__trainer_snapshot(t);
    MSA_TRY(msa__snapshot_read(&snapshot, step));
    if (t->progress.stage > t->config.n_stages) {
        return MSA_FAIL(MSA_EFORMAT,
                        "train: the checkpoint of step %lld is in stage %lld, the "
                        "configuration has %d",
                        (long long)step, (long long)t->progress.stage, t->config.n_stages);
    }
    t->saved_step = step;
    return msa__folder_of_step(t->saved_folder, t->config.output, step);
}

static msa_status create_values(msa_trainer *t, int32_t fresh)
{
    int64_t newest;
    msa_dtype dtype = t->config.dtype;
    MSA_TRY(msa__folder_newest(t->config.output, INT64_MAX, &newest));
    if (newest >= 0 && fresh) {
        return MSA_FAIL(MSA_EINVAL,
                        "train: output = %.200s has a checkpoint of step %lld, must have "
                        "none for a new run",
                        t->config.output, (long long)newest);
    }
    MSA_TRY(msa__parameters_create(&t->parameters, t->ctx, &t->model, dtype));
    MSA_TRY(msa__optimizer_create(&t->optimizer, &t->parameters, &t->config.adamw));
    if (newest >= 0) return resume(t, newest);
    MSA_TRY(msa__parameters_randomize(&t->parameters, (uint64_t)t->config.seed,
                                      (float)t->config.init_spread));
    return t->config.init_from ? load_weights(t) : MSA_OK;
}

/* ---- the whole ---------------------------------------------------------------------------- */

msa_status msa__trainer_open(msa_trainer *t, const msa_trainer_args *args)
{
    t->saved_step = -1;
    msa_trainer_state_init(&t->state);
    t->state.loss = t->state.index_loss = t->state.validation_loss = NAN;
    MSA_TRY(read_training(t, args));
    MSA_TRY(read_model(t));
    size_t n = (size_t)t->model.n_layers;
    t->index_loss = calloc(n, sizeof(*t->index_loss));
    t->column = calloc(n, sizeof(*t->column));
    t->recall = calloc(n, sizeof(*t->recall));
    if (!t->index_loss || !t->column || !t->recall) {
        return MSA_FAIL(MSA_ENOMEM, "train: no memory for the layers' figures");
    }
    MSA_TRY(msa__folder_make(t->config.output));
    MSA_TRY(open_data(t, args));
    MSA_TRY(create_values(t, args->fresh));
    return msa__log_open(&t->log, t->config.output, t->progress.step);
}
