/* config.json of Llama and Qwen3, with and without an index branch, and what of it is refused. */
#include "harness/cmocka_all.h"
#include "model/config_text.h"

#include "model/layout.h"
#include "model/rope_frequencies.h"

#include <stdlib.h>

/* The shape of Llama 3.1 8B as its folder spells it. */
static const char llama[] =
    "{\"architectures\": [\"LlamaForCausalLM\"], \"attention_bias\": false, \"mlp_bias\": false,"
    " \"bos_token_id\": 128000, \"eos_token_id\": [128001, 128008, 128009],"
    " \"hidden_act\": \"silu\", \"hidden_size\": 4096, \"intermediate_size\": 14336,"
    " \"max_position_embeddings\": 131072, \"model_type\": \"llama\","
    " \"num_attention_heads\": 32, \"num_hidden_layers\": 32, \"num_key_value_heads\": 8,"
    " \"rms_norm_eps\": 1e-05, \"rope_scaling\": {\"factor\": 8.0, \"low_freq_factor\": 1.0,"
    " \"high_freq_factor\": 4.0, \"original_max_position_embeddings\": 8192,"
    " \"rope_type\": \"llama3\"}, \"rope_theta\": 500000.0, \"tie_word_embeddings\": false,"
    " \"vocab_size\": 128256}";

/* That of Qwen3 4B. */
static const char qwen3[] =
    "{\"architectures\": [\"Qwen3ForCausalLM\"], \"attention_bias\": false,"
    " \"bos_token_id\": 151643, \"eos_token_id\": 151645, \"head_dim\": 128,"
    " \"hidden_act\": \"silu\", \"hidden_size\": 2560, \"intermediate_size\": 9728,"
    " \"max_position_embeddings\": 40960, \"max_window_layers\": 36, \"model_type\": \"qwen3\","
    " \"num_attention_heads\": 32, \"num_hidden_layers\": 36, \"num_key_value_heads\": 8,"
    " \"rms_norm_eps\": 1e-06, \"rope_scaling\": null, \"rope_theta\": 1000000,"
    " \"sliding_window\": 4096, \"use_sliding_window\": false, \"tie_word_embeddings\": true,"
    " \"vocab_size\": 151936}";

#define INDEX_KEYS                                                                                 \
    "\"index_n_heads\": 8, \"index_head_dim\": 128, \"index_block_size\": 128, "                   \
    "\"index_topk_blocks\": 16, \"index_local_blocks\": 1, "

static void test_llama(void **state)
{
    (void)state;
    msa__config c;
    msa__counts counts;
    EXPECT_OK(config_parse(&c, llama));
    assert_string_equal(c.architecture, "LlamaForCausalLM");
    assert_int_equal(c.family, MSA__FAMILY_LLAMA);
    assert_int_equal(c.head_dim, 128);
    assert_int_equal(c.rotary_dim, 128);
    assert_int_equal(c.norm_one_plus, 0);
    assert_int_equal(c.qk_norm, 0);
    assert_int_equal(c.activation.kind, MSA_ACT_SILU);
    assert_int_equal(c.dense_width, 14336);
    assert_int_equal(c.rope_scaling.kind, MSA__ROPE_LLAMA3);
    assert_true(c.rope_theta == 5e5);
    assert_int_equal(c.index_dim, 0);
    assert_int_equal(c.topk_blocks, 0);
    assert_int_equal(c.block_size, 128);
    assert_int_equal(c.n_eos, 3);
    for (int i = 0; i < c.n_layers; i++) {
        assert_int_equal(c.layers[i].attention, 0);
        assert_int_equal(c.layers[i].moe, 0);
    }
    msa__layout_count(&c, &counts);
    assert_int_equal(counts.n_parameters, INT64_C(8030261248)); /* of the released model */
    msa__config_free(&c);
}

static void test_qwen3(void **state)
{
    (void)state;
    msa__config c;
    msa__counts counts;
    EXPECT_OK(config_parse(&c, qwen3));
    assert_int_equal(c.family, MSA__FAMILY_QWEN3);
    assert_int_equal(c.qk_norm, 1);
    assert_int_equal(c.norm_one_plus, 0);
    assert_int_equal(c.tie_embeddings, 1);
    assert_int_equal(c.rope_scaling.kind, MSA__ROPE_PLAIN);
    msa__layout_count(&c, &counts);
    assert_int_equal(counts.n_parameters, INT64_C(4022468096)); /* of the released model */
    msa__config_free(&c);
}

static void test_heads_and_theta_may_be_absent(void **state)
{
    (void)state;
    msa__config c;
    char *one = config_with(llama, " \"num_key_value_heads\": 8,", "");
    char *two = config_with(one, " \"rope_theta\": 500000.0,", "");
    EXPECT_OK(config_parse(&c, two));
    assert_int_equal(c.n_kv_heads, 32);
    assert_true(c.rope_theta == 1e4);
    msa__config_free(&c);
    free(one);
    free(two);
}

/* transformers 5 keeps theta and scaling in rope_parameters. */
static void test_rope_parameters(void **state)
{
    (void)state;
    msa__config c;
    char *text = config_with(qwen3, "\"rope_scaling\": null, \"rope_theta\": 1000000",
                             "\"rope_parameters\": {\"rope_theta\": 1000000, \"rope_type\": "
                             "\"linear\", \"factor\": 4.0}");
    EXPECT_OK(config_parse(&c, text));
    assert_int_equal(c.rope_scaling.kind, MSA__ROPE_LINEAR);
    assert_true(c.rope_scaling.factor == 4.0);
    assert_true(c.rope_theta == 1e6);
    msa__config_free(&c);
    free(text);
}

/* Frequencies that transformers 5 computes for Llama 3.1: untouched, blended (29..35), divided. */
static void test_llama3_frequencies(void **state)
{
    (void)state;
    msa__config c;
    float f[MSA__MAX_ROPE_FREQUENCIES];
    EXPECT_OK(config_parse(&c, llama));
    msa__rope_frequencies(&c, f);
    const struct {
        int i;
        float value;
    } expected[] = {
        {0, 1.0f},
        {1, 0.814617217f},
        {28, 0.00321144611f},
        {29, 0.00216657063f},
        {30, 0.00137189368f},
        {35, 9.55621217e-05f},
        {36, 7.78465546e-05f},
        {63, 3.06892588e-07f},
    };
    for (size_t i = 0; i < sizeof(expected) / sizeof(expected[0]); i++) {
        float difference = f[expected[i].i] / expected[i].value - 1;
        if (difference > 5e-7f || difference < -5e-7f) {
            fail_msg("frequency %d is %.9g, must be %.9g", expected[i].i, (double)f[expected[i].i],
                     (double)expected[i].value);
        }
    }
    msa__config_free(&c);
}

/* ---- with an index branch ------------------------------------------------------------------ */

static char *with_index(const char *base, const char *architecture, const char *msa_architecture,
                        const char *layers, const char *types)
{
    char *named = config_with(base, architecture, msa_architecture);
    char *cut = config_with(named, layers, types);
    free(named);
    return cut;
}

static void test_converted_models(void **state)
{
    (void)state;
    msa__config c;
    char *text =
        with_index(llama, "LlamaForCausalLM", "MSALlamaForCausalLM", "\"num_hidden_layers\": 32,",
                   "\"num_hidden_layers\": 3, " INDEX_KEYS
                   "\"index_init_blocks\": 1, \"layer_types\": [\"full_attention\", "
                   "\"minimax_m3_sparse\", \"minimax_m3_sparse\"],");
    EXPECT_OK(config_parse(&c, text));
    assert_int_equal(c.family, MSA__FAMILY_LLAMA);
    for (int i = 0; i < 3; i++) assert_int_equal(c.layers[i].attention, i > 0);
    assert_int_equal(c.index_dim, 128);
    assert_int_equal(c.topk_blocks, 16);
    assert_int_equal(c.n_init_blocks, 1);
    msa__config_free(&c);
    const refusal cases[] = {
        {"\"index_n_heads\": 8", "\"index_n_heads\": 4", MSA_EUNSUPPORTED,
         "index_n_heads = 4, must equal num_key_value_heads = 8"},
        {"\"index_topk_blocks\": 16, ", "", MSA_EFORMAT, "index_topk_blocks is missing"},
        {"\"index_init_blocks\": 1", "\"index_init_blocks\": 16", MSA_EFORMAT, "in 0..15"},
        {"\"minimax_m3_sparse\"]", "\"dense\"]", MSA_EUNSUPPORTED, "layer_types[2] = \"dense\""},
    };
    expect_refusals(text, cases, sizeof(cases) / sizeof(cases[0]));
    free(text);
}

/* ---- refusals ------------------------------------------------------------------------------ */

static void test_unsupported_values_are_refused_by_name(void **state)
{
    (void)state;
    const refusal llama_cases[] = {
        {"\"attention_bias\": false", "\"attention_bias\": true", MSA_EUNSUPPORTED,
         "attention_bias = true, only false"},
        {"\"mlp_bias\": false", "\"mlp_bias\": true", MSA_EUNSUPPORTED, "mlp_bias = true"},
        {"\"hidden_act\": \"silu\"", "\"hidden_act\": \"gelu\"", MSA_EUNSUPPORTED,
         "hidden_act = \"gelu\", only \"silu\""},
        {"\"rope_type\": \"llama3\"", "\"rope_type\": \"yarn\"", MSA_EUNSUPPORTED,
         "rope_scaling.rope_type = \"yarn\", only"},
        {"\"rope_type\": \"llama3\"", "\"type\": \"dynamic\"", MSA_EUNSUPPORTED,
         "rope_scaling.type = \"dynamic\", only"},
        {"\"vocab_size\"", "\"sliding_window\": 4096, \"vocab_size\"", MSA_EUNSUPPORTED,
         "sliding_window = 4096, only null"},
        {"\"vocab_size\"", "\"partial_rotary_factor\": 0.5, \"vocab_size\"", MSA_EUNSUPPORTED,
         "partial_rotary_factor = 0.5, only 1"},
        {"\"vocab_size\"", "\"quantization_config\": {\"quant_method\": \"fp8\"}, \"vocab_size\"",
         MSA_EUNSUPPORTED, "quantization_config = {…}, quantised weights"},
        {"\"LlamaForCausalLM\"", "\"LlamaForSequenceClassification\"", MSA_EUNSUPPORTED,
         "architectures[0] = \"LlamaForSequenceClassification\", only"},
        {"\"hidden_size\": 4096", "\"hidden_size\": 3840", MSA_EUNSUPPORTED,
         "hidden_size = 3840, its heads of 120 must have a multiple of 16 dims"},
    };
    expect_refusals(llama, llama_cases, sizeof(llama_cases) / sizeof(llama_cases[0]));
    const refusal qwen3_cases[] = {
        {"\"use_sliding_window\": false", "\"use_sliding_window\": true", MSA_EUNSUPPORTED,
         "sliding_window = 4096, only null"},
        {"\"num_hidden_layers\": 36",
         "\"num_hidden_layers\": 2, \"layer_types\": [\"full_attention\", \"sliding_attention\"]",
         MSA_EUNSUPPORTED, "layer_types[1] = \"sliding_attention\", only \"full_attention\""},
        {"\"head_dim\": 128", "\"head_dim\": 72", MSA_EUNSUPPORTED, "head_dim = 72"},
    };
    expect_refusals(qwen3, qwen3_cases, sizeof(qwen3_cases) / sizeof(qwen3_cases[0]));
}

static void test_insane_values_are_refused(void **state)
{
    (void)state;
    const refusal cases[] = {
        {"\"hidden_size\": 4096", "\"hidden_size\": 4095", MSA_EFORMAT,
         "hidden_size = 4095, must be a multiple of num_attention_heads = 32"},
        {"\"num_key_value_heads\": 8", "\"num_key_value_heads\": 5", MSA_EFORMAT,
         "must be a multiple of num_key_value_heads = 5"},
        {"\"factor\": 8.0", "\"factor\": 0.5", MSA_EFORMAT, "factor = 0.5, must be at least 1"},
        {"\"high_freq_factor\": 4.0", "\"high_freq_factor\": 1.0", MSA_EFORMAT,
         "high_freq_factor = 1.0, must be above low_freq_factor = 1"},
        {"\"original_max_position_embeddings\": 8192,", "", MSA_EFORMAT,
         "rope_scaling.original_max_position_embeddings is missing"},
        {"\"rope_theta\": 500000.0", "\"rope_theta\": -1", MSA_EFORMAT, "rope_theta = -1"},
        {"\"rms_norm_eps\": 1e-05,", "", MSA_EFORMAT, "rms_norm_eps is missing"},
        {"\"intermediate_size\": 14336,", "", MSA_EFORMAT, "intermediate_size is missing"},
        {"\"rope_scaling\": {", "\"rope_scaling\": [], \"other\": {", MSA_EFORMAT,
         "rope_scaling = [0 items], must be an object"},
    };
    expect_refusals(llama, cases, sizeof(cases) / sizeof(cases[0]));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_llama),
        cmocka_unit_test(test_qwen3),
        cmocka_unit_test(test_heads_and_theta_may_be_absent),
        cmocka_unit_test(test_rope_parameters),
        cmocka_unit_test(test_llama3_frequencies),
        cmocka_unit_test(test_converted_models),
        cmocka_unit_test(test_unsupported_values_are_refused_by_name),
        cmocka_unit_test(test_insane_values_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
