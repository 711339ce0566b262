/* config.json: both layouts of M3 itself, its parameter counts, and every value that is refused. */
#define _POSIX_C_SOURCE 200809L
#include "harness/cmocka_all.h"
#include "model/config_text.h"
#include "model/folder.h"

#include "model/layout.h"

#include <stdio.h>
#include <stdlib.h>

static char *released, *flattened; /* the two layouts of M3's config */

static int read_both(void **state)
{
    (void)state;
    released = read_test_data("m3_config.json");
    flattened = read_test_data("m3_transformers_config.json");
    return 0;
}

static int free_both(void **state)
{
    (void)state;
    free(released);
    free(flattened);
    return 0;
}

/* ---- what M3 is
 * -------------------------------------------------------------------------------------- */

static void expect_m3(const msa__config *c)
{
    assert_string_equal(c->architecture, "MiniMaxM3SparseForConditionalGeneration");
    assert_int_equal(c->n_layers, 60);
    assert_int_equal(c->hidden_size, 6144);
    assert_int_equal(c->vocab_size, 200064);
    assert_int_equal(c->n_q_heads, 64);
    assert_int_equal(c->n_kv_heads, 4);
    assert_int_equal(c->head_dim, 128);
    assert_int_equal(c->max_positions, 1048576);
    assert_true(c->rms_norm_eps == 1e-6f);
    assert_int_equal(c->norm_one_plus, 1);
    assert_int_equal(c->qk_norm, 1);
    assert_true(c->rope_theta == 5e6);
    assert_int_equal(c->rotary_dim, 64);
    assert_int_equal(c->activation.kind, MSA_ACT_SWIGLU_OAI);
    assert_true(c->activation.alpha == 1.702f && c->activation.limit == 7.0f);
    assert_true(c->activation.beta == 1.0f);
    assert_int_equal(c->dense_width, 12288);
    assert_int_equal(c->expert_width, 3072);
    assert_int_equal(c->shared_width, 3072);
    assert_int_equal(c->n_experts, 128);
    assert_int_equal(c->n_experts_per_token, 4);
    assert_int_equal(c->n_shared_experts, 1);
    assert_int_equal(c->router_bias, 1);
    assert_true(c->routed_scaling == 2.0f);
    assert_int_equal(c->tie_embeddings, 0);
    assert_int_equal(c->index_dim, 128);
    assert_int_equal(c->block_size, 128);
    assert_int_equal(c->topk_blocks, 16);
    assert_int_equal(c->n_local_blocks, 1);
    assert_int_equal(c->n_init_blocks, 0);
    assert_int_equal(c->mxfp8, 0);
    assert_int_equal(c->image_token_id, 200025);
    assert_int_equal(c->video_token_id, 200026);
    for (int i = 0; i < 60; i++) {
        assert_int_equal(c->layers[i].attention,
                         i >= 3 ? MSA__ATTENTION_MSA : MSA__ATTENTION_DENSE);
        assert_int_equal(c->layers[i].moe, i >= 3);
    }
}

static void test_both_layouts_of_m3(void **state)
{
    (void)state;
    msa__config config;
    EXPECT_OK(config_parse(&config, released));
    expect_m3(&config);
    assert_int_equal(config.bos_token_id, -1);
    assert_int_equal(config.n_eos, 0);
    msa__config_free(&config);
    EXPECT_OK(config_parse(&config, flattened));
    expect_m3(&config);
    assert_int_equal(config.bos_token_id, 200034);
    assert_int_equal(config.n_eos, 1);
    assert_int_equal(config.eos_token_ids[0], 200020);
    msa__config_free(&config);
}

#define QUANTIZATION                                                                               \
    "\"quantization_config\": {\"quant_method\": \"mxfp8\", \"activation_scheme\": \"dynamic\", "  \
    "\"weight_block_size\": [1, 32], \"ignored_layers\": [\"lm_head\", \"model.embed_tokens\", "   \
    "\"vision_tower\", \"multi_modal_projector\", \"patch_merge_mlp\"]}, \"torch_dtype\""

/* The numbers are those of the released checkpoints, less their vision parts: 865,567,232
 * parameters in 1,734,145,024 bytes. */
static void test_counts_are_those_of_the_release(void **state)
{
    (void)state;
    msa__config config;
    msa__counts counts;
    EXPECT_OK(config_parse(&config, released));
    msa__layout_count(&config, &counts);
    assert_int_equal(counts.n_parameters, INT64_C(426174572928));
    assert_int_equal(counts.n_parameters, INT64_C(427040140160) - 865567232);
    assert_int_equal(counts.weight_bytes, INT64_C(854172958720) - 1734145024);
    assert_true(counts.n_active_parameters > INT64_C(23450000000));
    assert_true(counts.n_active_parameters < INT64_C(23550000000));
    /* bf16 but for the routers, whose other two bytes are 57 * 129 * ... ; the head is read too */
    int64_t routers = INT64_C(57) * (128 * 6144 + 128);
    assert_int_equal(counts.active_weight_bytes,
                     2 * (counts.n_active_parameters + INT64_C(200064) * 6144) + 2 * routers);
    msa__config_free(&config);

    char *quantized = config_with(released, "\"torch_dtype\"", QUANTIZATION);
    EXPECT_OK(config_parse(&config, quantized));
    assert_int_equal(config.mxfp8, 1);
    assert_int_equal(config.n_ignored, 5);
    msa__layout_count(&config, &counts);
    assert_int_equal(counts.n_parameters, INT64_C(426174572928));
    assert_int_equal(counts.weight_bytes, INT64_C(443742085120) - 1734145024);
    msa__config_free(&config);
    free(quantized);
}

static msa_status count_one(void *user, const msa__tensor_spec *spec)
{
    (void)spec;
    (*(int64_t *)user)++;
    return MSA_OK;
}

static void test_number_of_tensors_is_that_of_the_release(void **state)
{
    (void)state;
    msa__config config;
    int64_t n = 0;
    EXPECT_OK(config_parse(&config, released));
    EXPECT_OK(msa__layout_visit(&config, count_one, &n));
    assert_int_equal(n, 23416 - 515 - 8);
    msa__config_free(&config);
}

/* ---- variants
 * ---------------------------------------------------------------------------------------- */

static void test_text_only_config(void **state)
{
    (void)state;
    msa__config config;
    const char *begin = strstr(flattened, "\"text_config\": {") + strlen("\"text_config\": ");
    char *text = strdup(begin), *end;
    assert_non_null(text);
    for (end = text + strlen(text); *--end != '}';) continue; /* the root's brace goes */
    *end = '\0';
    EXPECT_OK(config_parse(&config, text));
    assert_string_equal(config.architecture, "minimax_m3_vl_text");
    assert_int_equal(config.n_layers, 60);
    assert_int_equal(config.image_token_id, -1);
    msa__config_free(&config);
    free(text);
}

static void expect_changed(const char *base, const char *from, const char *to,
                           void (*check)(const msa__config *))
{
    msa__config config;
    char *text = config_with(base, from, to);
    EXPECT_OK(config_parse(&config, text));
    check(&config);
    msa__config_free(&config);
    free(text);
}

static void is_dense_everywhere(const msa__config *c)
{
    assert_int_equal(msa__config_count_attention(c, MSA__ATTENTION_DENSE), c->n_layers);
    assert_int_equal(c->block_size, 128); /* of the cache */
}

static void has_beta(const msa__config *c)
{
    assert_true(c->activation.beta == 0.25f);
}

static void has_rotary_48(const msa__config *c)
{
    assert_int_equal(c->rotary_dim, 48);
}

static void has_no_shared_expert(const msa__config *c)
{
    assert_int_equal(c->n_shared_experts, 0);
}

static void has_plain_norms(const msa__config *c)
{
    assert_int_equal(c->norm_one_plus, 0);
    assert_int_equal(c->qk_norm, 1);
}

static void has_no_router_bias(const msa__config *c)
{
    assert_int_equal(c->router_bias, 0);
}

static void has_no_qk_norm(const msa__config *c)
{
    assert_int_equal(c->norm_one_plus, 1);
    assert_int_equal(c->qk_norm, 0);
}

static void has_two_eos(const msa__config *c)
{
    assert_int_equal(c->n_eos, 2);
    assert_int_equal(c->eos_token_ids[1], 7);
}

static void is_tied(const msa__config *c)
{
    assert_int_equal(c->tie_embeddings, 1);
}

static void forces_first_block(const msa__config *c)
{
    assert_int_equal(c->n_init_blocks, 1);
}

static void test_values_are_taken_over(void **state)
{
    (void)state;
    expect_changed(released, "\"use_sparse_attention\": true", "\"use_sparse_attention\": false",
                   is_dense_everywhere);
    expect_changed(released, "\"swiglu_alpha\"", "\"swiglu_beta\": 0.25, \"swiglu_alpha\"",
                   has_beta);
    expect_changed(flattened, "\"partial_rotary_factor\": 0.5", "\"partial_rotary_factor\": 0.375",
                   has_rotary_48);
    expect_changed(released, "\"n_shared_experts\": 1", "\"n_shared_experts\": 0",
                   has_no_shared_expert);
    expect_changed(released, "\"use_gemma_norm\": true", "\"use_gemma_norm\": false",
                   has_plain_norms);
    expect_changed(flattened, "\"rms_norm_eps\"", "\"use_gemma_norm\": false, \"rms_norm_eps\"",
                   has_plain_norms);
    expect_changed(flattened, "\"rms_norm_eps\"", "\"use_qk_norm\": false, \"rms_norm_eps\"",
                   has_no_qk_norm);
    expect_changed(flattened, "\"rms_norm_eps\"", "\"n_shared_experts\": 0, \"rms_norm_eps\"",
                   has_no_shared_expert);
    expect_changed(flattened, "\"rms_norm_eps\"", "\"use_routing_bias\": false, \"rms_norm_eps\"",
                   has_no_router_bias);
    expect_changed(flattened, "\"eos_token_id\": 200020", "\"eos_token_id\": [5, 7]", has_two_eos);
    expect_changed(released, "\"tie_word_embeddings\": false", "\"tie_word_embeddings\": true",
                   is_tied);
    expect_changed(released, "\"sparse_init_block\": 0", "\"sparse_init_block\": 1",
                   forces_first_block);
}

static void test_ignored_modules(void **state)
{
    (void)state;
    msa__config config;
    char *text = config_with(released, "\"torch_dtype\"", QUANTIZATION);
    EXPECT_OK(config_parse(&config, text));
    assert_true(msa__config_ignores(&config, "language_model.lm_head"));
    assert_true(msa__config_ignores(&config, "lm_head"));
    assert_true(msa__config_ignores(&config, "language_model.model.embed_tokens"));
    assert_true(msa__config_ignores(&config, "vision_tower.vision_model.encoder.layers.0.mlp.fc1"));
    assert_false(msa__config_ignores(&config, "language_model.model.layers.0.mlp.gate_proj"));
    assert_false(msa__config_ignores(&config, "lm_header"));
    assert_false(msa__config_ignores(&config, "my_lm_head"));
    msa__config_free(&config);
    free(text);
}

/* ---- refusals
 * ---------------------------------------------------------------------------------------- */

static void test_unsupported_values_are_refused_by_name(void **state)
{
    (void)state;
    const refusal cases[] = {
        {"\"MiniMaxM3SparseForConditionalGeneration\"", "\"MistralForCausalLM\"", MSA_EUNSUPPORTED,
         "architectures[0] = \"MistralForCausalLM\", only MiniMax-M3"},
        {"\"sigmoid\"", "\"softmax\"", MSA_EUNSUPPORTED,
         "config.json: text_config.scoring_func = \"softmax\", only \"sigmoid\""},
        {"\"per_head\"", "\"whole\"", MSA_EUNSUPPORTED, "qk_norm_type = \"whole\""},
        {"\"attention_output_gate\": false", "\"attention_output_gate\": true", MSA_EUNSUPPORTED,
         "attention_output_gate = true, only false"},
        {"\"swigluoai\"", "\"silu\"", MSA_EUNSUPPORTED, "hidden_act = \"silu\""},
        {"\"rope_theta\"", "\"rope_scaling\": {\"type\": \"yarn\"}, \"rope_theta\"",
         MSA_EUNSUPPORTED, "rope_scaling = {…}, only null"},
        {"\"rope_theta\"", "\"sliding_window\": 4096, \"rope_theta\"", MSA_EUNSUPPORTED,
         "sliding_window = 4096"},
        {"\"rope_theta\"", "\"norm_topk_prob\": false, \"rope_theta\"", MSA_EUNSUPPORTED,
         "norm_topk_prob = false, only true"},
        {"\"sparse_score_type\": \"max\"", "\"sparse_score_type\": \"mean\"", MSA_EUNSUPPORTED,
         "sparse_attention_config.sparse_score_type = \"mean\", only \"max\""},
        {"\"sparse_num_index_heads\": 4", "\"sparse_num_index_heads\": 1", MSA_EUNSUPPORTED,
         "sparse_num_index_heads = 1, must equal num_key_value_heads = 4"},
        {"\"sparse_index_dim\": 128", "\"sparse_index_dim\": 64", MSA_EUNSUPPORTED,
         "sparse_index_dim = 64, must equal head_dim = 128"},
        {"\"sparse_block_size\": 128", "\"sparse_block_size\": 96", MSA_EUNSUPPORTED,
         "sparse_block_size = 96, must be a power of two"},
        {"\"sparse_disable_index_value\": [0, 0, 0, 1",
         "\"sparse_disable_index_value\": [0, 0, 0, 0", MSA_EUNSUPPORTED,
         "sparse_disable_index_value[3] = 0, an index value path"},
        {"\"n_shared_experts\": 1", "\"n_shared_experts\": 2", MSA_EUNSUPPORTED,
         "n_shared_experts = 2, at most 1"},
        {"\"head_dim\": 128", "\"head_dim\": 120", MSA_EUNSUPPORTED,
         "head_dim = 120, must be a multiple of 16"},
        {"\"torch_dtype\"",
         "\"quantization_config\": {\"quant_method\": \"gptq\"}, \"torch_dtype\"", MSA_EUNSUPPORTED,
         "quantization_config.quant_method = \"gptq\", only \"mxfp8\""},
        {"\"torch_dtype\"",
         "\"quantization_config\": {\"quant_method\": \"mxfp8\", \"weight_block_size\": [128, "
         "128]}, \"torch_dtype\"",
         MSA_EUNSUPPORTED, "weight_block_size = [2 items], only [1, 32]"},
    };
    expect_refusals(released, cases, sizeof(cases) / sizeof(cases[0]));
    const refusal flat_cases[] = {
        {"\"rope_type\": \"default\"", "\"rope_type\": \"yarn\"", MSA_EUNSUPPORTED,
         "rope_parameters.rope_type = \"yarn\", only \"default\""},
        {"\"layer_types\": [\"full_attention\"", "\"layer_types\": [\"chunked_attention\"",
         MSA_EUNSUPPORTED,
         "layer_types[0] = \"chunked_attention\", only \"full_attention\", "
         "\"minimax_m3_sparse\", "},
        {"\"mlp_layer_types\": [\"dense\"", "\"mlp_layer_types\": [\"wide\"", MSA_EUNSUPPORTED,
         "mlp_layer_types[0] = \"wide\""},
        {"\"silu\"", "\"gelu\"", MSA_EUNSUPPORTED, "hidden_act = \"gelu\""},
    };
    expect_refusals(flattened, flat_cases, sizeof(flat_cases) / sizeof(flat_cases[0]));
}

#define MORE_KINDS                                                                                 \
    "\"sliding_window\": 512, \"window_control_blocks\": 16, \"moba_block_size\": 512, "           \
    "\"moba_topk\": 4, \"dsa_index_heads\": 8, \"dsa_index_dim\": 128, \"dsa_topk\": 2048, "       \
    "\"layer_types\": [\"sliding_attention\", \"window_control\", \"moba\", \"dsa\""

/* The first four layers of M3, three of them full, as other kinds. */
static void has_more_kinds(const msa__config *c)
{
    assert_int_equal(c->layers[0].attention, MSA__ATTENTION_SWA);
    assert_int_equal(c->layers[1].attention, MSA__ATTENTION_WINDOW_CONTROL);
    assert_int_equal(c->layers[2].attention, MSA__ATTENTION_MOBA);
    assert_int_equal(msa__config_count_attention(c, MSA__ATTENTION_MSA), 56);
    assert_int_equal(c->layers[3].attention, MSA__ATTENTION_DSA);
    assert_int_equal(c->dsa_heads, 8);
    assert_int_equal(c->dsa_topk, 2048);
    assert_int_equal(c->index_dim, 128);
    assert_int_equal(c->window, 512);
    assert_int_equal(c->window_blocks, 16);
    assert_int_equal(c->moba_pages, 4); /* of 512 tokens, in pages of 128 */
    assert_int_equal(c->moba_topk, 4);
}

static void test_other_kinds_of_attention(void **state)
{
    (void)state;
    static const char two_full[] = "\"layer_types\": [\"full_attention\", \"full_attention\"";
    expect_changed(flattened,
                   "\"layer_types\": [\"full_attention\", \"full_attention\", \"full_attention\", "
                   "\"minimax_m3_sparse\"",
                   MORE_KINDS, has_more_kinds);
    const refusal cases[] = {
        {two_full, "\"layer_types\": [\"sliding_attention\", \"full_attention\"", MSA_EFORMAT,
         "text_config.sliding_window is missing"},
        {two_full, "\"layer_types\": [\"window_control\", \"full_attention\"", MSA_EFORMAT,
         "text_config.window_control_blocks is missing"},
        {two_full,
         "\"sliding_window\": 0, \"layer_types\": [\"sliding_attention\", \"full_attention\"",
         MSA_EFORMAT, "sliding_window = 0, must be an integer in 1.."},
        {two_full,
         "\"sliding_window\": 9, \"layer_types\": [\"full_attention\", \"full_attention\"",
         MSA_EUNSUPPORTED, "sliding_window = 9, must be null"},
        {two_full, "\"layer_types\": [\"full_attention\"", MSA_EFORMAT, "[59 items]"},
        {two_full, "\"moba_block_size\": 200, \"layer_types\": [\"moba_group\", \"full_attention\"",
         MSA_EUNSUPPORTED, "moba_block_size = 200, must be a multiple of index_block_size = 128"},
        {two_full,
         "\"moba_block_size\": 4096, \"moba_topk\": 12, \"layer_types\": [\"moba\", "
         "\"full_attention\"",
         MSA_EFORMAT, "moba_topk = 12, must be an integer in 1..2"},
        {two_full,
         "\"dsa_index_heads\": 4, \"dsa_index_dim\": 128, \"layer_types\": [\"dsa\", "
         "\"full_attention\"",
         MSA_EFORMAT, "text_config.dsa_topk is missing"},
        {two_full,
         "\"dsa_index_heads\": 4, \"dsa_topk\": 2048, \"dsa_index_dim\": 32, \"layer_types\": "
         "[\"dsa\", \"full_attention\"",
         MSA_EFORMAT, "dsa_index_dim = 32, must be an integer in 64..512"},
        {two_full,
         "\"dsa_index_heads\": 4, \"dsa_topk\": 2048, \"dsa_index_dim\": 72, \"layer_types\": "
         "[\"dsa\", \"full_attention\"",
         MSA_EUNSUPPORTED, "dsa_index_dim = 72, must be a multiple of 16"},
        {two_full,
         "\"dsa_index_heads\": 4, \"dsa_topk\": 2048, \"dsa_index_dim\": 64, \"layer_types\": "
         "[\"dsa\", \"full_attention\"",
         MSA_EUNSUPPORTED, "index_head_dim = 128, must equal dsa_index_dim = 64"},
    };
    expect_refusals(flattened, cases, sizeof(cases) / sizeof(cases[0]));
    const refusal released_cases[] = {
        {"\"rope_theta\"", "\"layer_types\": [\"full_attention\"], \"rope_theta\"", MSA_EFORMAT,
         "layer_types = [1 items], must have num_hidden_layers = 60 items"},
    };
    expect_refusals(released, released_cases, 1);
}

static void test_insane_values_are_refused(void **state)
{
    (void)state;
    const refusal cases[] = {
        {"\"hidden_size\": 6144", "\"hidden_sizes\": 6144", MSA_EFORMAT,
         "text_config.hidden_size is missing"},
        {"\"hidden_size\": 6144", "\"hidden_size\": \"big\"", MSA_EFORMAT,
         "hidden_size = \"big\", must be an integer in 1..1048576"},
        {"\"hidden_size\": 6144", "\"hidden_size\": 0", MSA_EFORMAT, "hidden_size = 0"},
        {"\"num_hidden_layers\": 60", "\"num_hidden_layers\": 1000000", MSA_EFORMAT,
         "num_hidden_layers = 1000000, must be an integer in 1..1024"},
        {"\"num_hidden_layers\": 60", "\"num_hidden_layers\": 59", MSA_EFORMAT,
         "must have num_hidden_layers = 59 items"},
        {"\"num_attention_heads\": 64", "\"num_attention_heads\": 63", MSA_EFORMAT,
         "must be a multiple of num_key_value_heads = 4"},
        {"\"num_experts_per_tok\": 4", "\"num_experts_per_tok\": 129", MSA_EFORMAT,
         "num_experts_per_tok = 129, must be an integer in 1..64"},
        {"\"num_local_experts\": 128", "\"num_local_experts\": 3", MSA_EFORMAT,
         "num_experts_per_tok = 4, must be an integer in 1..3"},
        {"\"sparse_topk_blocks\": 16", "\"sparse_topk_blocks\": 65", MSA_EFORMAT, "in 1..64"},
        {"\"sparse_local_block\": 1", "\"sparse_local_block\": 17", MSA_EFORMAT, "in 0..16"},
        {"\"sparse_init_block\": 0", "\"sparse_init_block\": 16", MSA_EFORMAT, "in 0..15"},
        {"\"sparse_attention_freq\": [0", "\"sparse_attention_freq\": [2", MSA_EFORMAT,
         "sparse_attention_freq[0] = 2, must be an integer in 0..1"},
        {"\"moe_layer_freq\": [0, ", "\"moe_layer_freq\": [", MSA_EFORMAT, "[59 items]"},
        {"\"rotary_dim\": 64", "\"rotary_dim\": 128", MSA_EFORMAT,
         "rotary_dim = 128, must be partial_rotary_factor * head_dim = 64"},
        {"\"rotary_dim\": 64", "\"rotary_dim\": 130", MSA_EFORMAT, "in 2..128"},
        {"\"partial_rotary_factor\": 0.5", "\"partial_rotary_factor\": 1.5", MSA_EFORMAT,
         "partial_rotary_factor = 1.5, must be above 0, at most 1"},
        {"\"rms_norm_eps\": 1e-06", "\"rms_norm_eps\": 0", MSA_EFORMAT, "must be above 0"},
        {"\"rope_theta\": 5000000", "\"rope_theta\": 1e999", MSA_EFORMAT,
         "must be a finite number"},
        {"\"swiglu_limit\": 7.0", "\"swiglu_limit\": -7.0", MSA_EFORMAT, "must be above 0"},
        {"\"swiglu_limit\": 7.0,", "", MSA_EFORMAT, "swiglu_limit is missing"},
        {"\"use_gemma_norm\": true", "\"use_gemma_norm\": 1", MSA_EFORMAT, "must be true or false"},
        {"\"text_config\": {", "\"text_config\": [], \"other\": {", MSA_EFORMAT,
         "text_config = [0 items], must be an object"},
        {"\"torch_dtype\"", "\"eos_token_id\": [1,2,3,4,5,6,7,8,9], \"torch_dtype\"", MSA_EFORMAT,
         "eos_token_id = [9 items], must have at most 8"},
        {"\"torch_dtype\"", "\"bos_token_id\": -2, \"torch_dtype\"", MSA_EFORMAT,
         "bos_token_id = -2"},
    };
    expect_refusals(released, cases, sizeof(cases) / sizeof(cases[0]));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_both_layouts_of_m3),
        cmocka_unit_test(test_counts_are_those_of_the_release),
        cmocka_unit_test(test_number_of_tensors_is_that_of_the_release),
        cmocka_unit_test(test_text_only_config),
        cmocka_unit_test(test_values_are_taken_over),
        cmocka_unit_test(test_ignored_modules),
        cmocka_unit_test(test_unsupported_values_are_refused_by_name),
        cmocka_unit_test(test_other_kinds_of_attention),
        cmocka_unit_test(test_insane_values_are_refused),
    };
    return cmocka_run_group_tests(tests, read_both, free_both);
}
