/* See train_fixture.h. */
#include "train_fixture.h"

#include "harness/cmocka_all.h"

#include "base/rng.h"
#include "msa/memory.h"

#include <stdio.h>
#include <stdlib.h>

const char *const tiny_config =
    "{\"architectures\": [\"MiniMaxM3SparseForCausalLM\"], \"hidden_size\": 48,"
    "\"num_hidden_layers\": 3, \"num_attention_heads\": 4, \"num_key_value_heads\": 2,"
    "\"head_dim\": 16, \"vocab_size\": 64, \"max_position_embeddings\": 4096,"
    "\"rms_norm_eps\": 1e-06, \"use_gemma_norm\": true, \"use_qk_norm\": true,"
    "\"rope_theta\": 10000, \"rotary_dim\": 8, \"partial_rotary_factor\": 0.5,"
    "\"hidden_act\": \"swigluoai\", \"swiglu_alpha\": 1.702, \"swiglu_limit\": 7.0,"
    "\"intermediate_size\": 32, \"shared_intermediate_size\": 32,"
    "\"dense_intermediate_size\": 64, \"num_local_experts\": 4, \"num_experts_per_tok\": 2,"
    "\"n_shared_experts\": 1, \"scoring_func\": \"sigmoid\", \"use_routing_bias\": true,"
    "\"routed_scaling_factor\": 2.0, \"moe_layer_freq\": [0, 1, 1],"
    "\"tie_word_embeddings\": false, \"sparse_attention_config\": {"
    "\"use_sparse_attention\": true, \"sparse_num_index_heads\": 2, \"sparse_index_dim\": 16,"
    "\"sparse_block_size\": 16, \"sparse_topk_blocks\": 2, \"sparse_local_block\": 1,"
    "\"sparse_init_block\": 0, \"sparse_score_type\": \"max\","
    "\"sparse_attention_freq\": [0, 1, 1]}}";

/* Without experts; with the layers of other kinds. */
#define PLAIN(kinds)                                                                               \
    "{\"architectures\": [\"MiniMaxM3SparseForCausalLM\"], \"hidden_size\": 48,"                   \
    "\"num_hidden_layers\": 3, \"num_attention_heads\": 4, \"num_key_value_heads\": 2,"            \
    "\"head_dim\": 16, \"vocab_size\": 64, \"max_position_embeddings\": 4096,"                     \
    "\"rms_norm_eps\": 1e-06, \"use_gemma_norm\": false, \"use_qk_norm\": false,"                  \
    "\"rope_theta\": 10000, \"rotary_dim\": 16, \"partial_rotary_factor\": 1.0,"                   \
    "\"hidden_act\": \"swigluoai\", \"swiglu_alpha\": 1.702, \"swiglu_limit\": 7.0,"               \
    "\"dense_intermediate_size\": 64, \"moe_layer_freq\": [0, 0, 0],"                              \
    "\"tie_word_embeddings\": true, \"index_block_size\": 16, " kinds "}"

const char *const tiny_window_config =
    PLAIN("\"layer_types\": [\"full_attention\", \"sliding_attention\", \"window_control\"],"
          "\"sliding_window\": 24, \"window_control_blocks\": 3");

const char *const tiny_moba_config = PLAIN("\"layer_types\": [\"moba\", \"moba_group\", \"moba\"],"
                                           "\"moba_block_size\": 16, \"moba_topk\": 2");

const char *const tiny_moba_pages_config =
    PLAIN("\"layer_types\": [\"moba\", \"moba_group\", \"full_attention\"],"
          "\"moba_block_size\": 32, \"moba_topk\": 1");

const char *const tiny_lightning_config =
    PLAIN("\"layer_types\": [\"lightning\", \"full_attention\", \"lightning\"]");

const char *const tiny_dsa_config =
    PLAIN("\"layer_types\": [\"full_attention\", \"dsa\", \"dsa\"], \"dsa_index_heads\": 3,"
          "\"dsa_index_dim\": 32, \"dsa_topk\": 12");

/* Of the weights: no token is so near to another choice of experts or blocks that a small step of a
 * finite difference changes it. */
#define SEED 1

/* ---- the model ---------------------------------------------------------------------------- */

/* Norms and biases that start at a neutral value would hide a gradient that forgets them. */
static void shake(tiny *t)
{
    for (int32_t i = 0; i < t->parameters.n_list; i++) {
        const msa__parameter *one = &t->parameters.list[i];
        float values[64];
        if (one->spec.columns) continue;
        assert_true(one->n <= 64);
        EXPECT_OK(msa__parameters_get(&t->parameters, one, 0, one->n, values));
        for (int64_t k = 0; k < one->n; k++) {
            uint32_t words[4];
            msa__philox(7, (uint64_t)k, (uint64_t)i, words);
            float spread = one->group == MSA__GROUP_ROUTER_BIAS ? 0.02f : 0.2f;
            values[k] += spread * (2 * msa__uniform(words[0]) - 1);
        }
        EXPECT_OK(msa__parameters_put(&t->parameters, one, 0, one->n, values));
    }
}

const char *tiny_backend(void)
{
    const char *backend = getenv("MSA_TEST_BACKEND");
    return backend ? backend : "cpu";
}

void tiny_open(tiny *t, const char *config, const char *backend, int32_t n_threads)
{
    const msa__json *root;
    msa_context_args args;
    memset(t, 0, sizeof(*t));
    msa_context_args_init(&args);
    args.backend = backend;
    args.n_threads = n_threads;
    msa_status status = msa_context_create(&t->ctx, &args);
    if (status == MSA_EUNSUPPORTED && getenv("MSA_TEST_BACKEND")) {
        printf("skipped: %s\n", msa_last_error());
        exit(77);
    }
    EXPECT_OK(status);
    EXPECT_OK(msa__json_parse(&root, NULL, "tiny", config, strlen(config)));
    EXPECT_OK(msa__config_parse(&t->config, root));
    msa__json_free(root);
}

void tiny_fill(tiny *t, msa_dtype dtype, msa__keep keep)
{
    EXPECT_OK(msa__parameters_create(&t->parameters, t->ctx, &t->config, dtype));
    EXPECT_OK(msa__parameters_randomize(&t->parameters, SEED, 0.15f));
    shake(t);
    msa__walk_args walk = {.ctx = t->ctx,
                           .config = &t->config,
                           .weights = &t->parameters.weights,
                           .gradients = &t->parameters,
                           .dtype = dtype,
                           .keep = keep,
                           .max_tokens = TINY_TOKENS};
    EXPECT_OK(msa__walk_create(&t->walk, &walk));
}

void tiny_create(tiny *t, const char *config, const char *backend, int32_t n_threads,
                 msa_dtype dtype, msa__keep keep)
{
    tiny_open(t, config, backend, n_threads);
    tiny_fill(t, dtype, keep);
}

void tiny_destroy(tiny *t)
{
    msa__walk_destroy(&t->walk);
    msa__parameters_free(&t->parameters);
    msa__config_free(&t->config);
    msa_context_destroy(t->ctx);
}

/* ---- batches ------------------------------------------------------------------------------ */

const msa__walk_batch *tiny_batch(void)
{
    static const int32_t cu_seqlens[] = {0, 10, 60, TINY_TOKENS};
    static int32_t tokens[TINY_TOKENS], targets[TINY_TOKENS], positions[TINY_TOKENS];
    static const msa__walk_batch batch = {tokens, targets, positions, cu_seqlens, TINY_TOKENS, 3};
    for (int32_t i = 0; i < TINY_TOKENS; i++) {
        uint32_t words[4];
        msa__philox(3, (uint64_t)i, 0, words);
        tokens[i] = (int32_t)(words[0] % TINY_VOCAB);
    }
    for (int32_t s = 0; s < 3; s++) {
        for (int32_t i = cu_seqlens[s]; i < cu_seqlens[s + 1]; i++) {
            positions[i] = i - cu_seqlens[s];
            targets[i] = i + 1 < cu_seqlens[s + 1] ? tokens[i + 1] : -1;
        }
    }
    return &batch;
}

float *tiny_copy(const tiny *t, const float *from, int64_t n)
{
    float *copy = malloc((size_t)n * sizeof(*copy));
    assert_non_null(copy);
    EXPECT_OK(msa_memory_download(t->ctx, copy, from, (size_t)n * sizeof(*copy)));
    return copy;
}

static double sum_of(const tiny *t, const float *from, int64_t n)
{
    double sum = 0;
    float *values = tiny_copy(t, from, n);
    for (int64_t i = 0; i < n; i++) sum += (double)values[i];
    free(values);
    return sum;
}

/* ---- walks -------------------------------------------------------------------------------- */

/* KL of a layer as soon as its state is there: a walk up alone does not take it. */
static msa_status see_index(void *user, msa__walk *w, int32_t layer)
{
    msa_reverse_index reverse = {0};
    (void)user;
    if (!msa__walk_has_index(w, layer)) return MSA_OK;
    msa_status status = msa__walk_reverse(w, layer, &reverse);
    return status == MSA_OK ? msa__walk_index(w, layer, &reverse, 0) : status;
}

tiny_loss tiny_forward(tiny *t, const msa__walk_mode *mode)
{
    tiny_loss loss = {0, 0};
    t->walk.mode = *mode;
    t->walk.mode.measure_index = 1;
    t->walk.mode.see = see_index;
    EXPECT_OK(msa__walk_forward(&t->walk, tiny_batch()));
    EXPECT_OK(msa__walk_loss(&t->walk, 0));
    loss.language = (double)mode->loss_weight * sum_of(t, t->walk.loss, TINY_TOKENS);
    for (int32_t layer = 0; layer < t->config.n_layers; layer++) {
        if (!msa__walk_has_index(&t->walk, layer)) continue;
        int64_t n = msa__index_rows(&t->config, layer);
        double weight = (double)mode->index_weight * (double)(t->config.n_kv_heads / n);
        loss.index += weight * sum_of(t, t->walk.index_loss[layer], TINY_TOKENS * n);
    }
    return loss;
}

void tiny_gradients(tiny *t, const msa__walk_mode *mode)
{
    t->walk.mode = *mode;
    EXPECT_OK(msa__parameters_zero(&t->parameters, t->parameters.gradients));
    EXPECT_OK(msa__walk_forward(&t->walk, tiny_batch()));
    if (!mode->freeze_backbone) EXPECT_OK(msa__walk_loss(&t->walk, 1));
    EXPECT_OK(msa__walk_backward(&t->walk));
}
