/* Dense models become MSA models: the same numbers while everything is selected, a selection
 * beyond, and clear words about what is not converted. */
#include "golden/golden.h"
#include "harness/cmocka_all.h"
#include "model/make_preset.h"
#include "model/tensors.h"
#include "msa/convert.h"

#include <stdio.h>
#include <stdlib.h>

static msa_convert_args arguments(const char *source_dir, const folder *out)
{
    msa_convert_args args;
    msa_convert_args_init(&args);
    args.source_dir = source_dir;
    args.out_dir = out->dir;
    args.block_size = 16;
    args.topk_blocks = 64;
    return args;
}

static msa_status convert(const msa_convert_args *args)
{
    return msa_convert(args, NULL, NULL);
}

/* A dense model of M3's shape, with experts behind a dense layer. */
static void make_m3(const folder *f, int32_t n_full_layers, int32_t mxfp8)
{
    const msa__preset preset = {.name = "dense",
                                .description = "",
                                .hidden_size = 64,
                                .n_layers = 3,
                                .n_full_layers = n_full_layers,
                                .n_dense_layers = 1,
                                .n_q_heads = 4,
                                .n_kv_heads = 2,
                                .head_dim = 32,
                                .block_size = 16,
                                .topk_blocks = 3,
                                .n_experts = 4,
                                .n_experts_per_token = 2,
                                .expert_width = 32,
                                .shared_width = 32,
                                .dense_width = 96,
                                .max_positions = 1024,
                                .mxfp8 = mxfp8};
    EXPECT_OK(msa__preset_make(f->dir, &preset, 3, NULL, NULL));
}

/* ---- the same model while everything is selected ------------------------------------------- */

#define N_TOKENS 200

static record *run(const char *dir, const char *backend, int32_t attention, int32_t *n_sparse)
{
    subject s;
    int32_t tokens[N_TOKENS];
    subject_open(&s, dir, backend, NULL, 2);
    for (int32_t i = 0; i < N_TOKENS; i++) tokens[i] = (i * 37 + i / 7) % s.info.vocab_size;
    record *r =
        run_tokens(&s, tokens, N_TOKENS, MSA_DTYPE_F32, MSA_DTYPE_F32, 64, N_TOKENS - 3, attention);
    *n_sparse = s.info.n_sparse_layers;
    subject_close(&s);
    return r;
}

static void expect_same_logits(const char *dir, const char *what, const record *expected,
                               const record *r)
{
    int64_t n = expected->n_tokens * expected->vocab;
    double difference = largest_difference(expected->logits, r->logits, n);
    if (difference > 0) fail_msg("%s, %s: logits differ by %g", dir, what, difference);
}

/* Every block selected, and the selection switched off: the same bits. The cpu backend sums tile by
 * tile and a tile is a block, so there the blocks must be as long as the dense model's pages. */
static void expect_same_model(const char *dense_dir, const char *dir, const char *backend)
{
    int32_t n_sparse;
    record *dense = run(dense_dir, backend, MSA_ATTENTION_SPARSE, &n_sparse);
    assert_int_equal(n_sparse, 0);
    record *all = run(dir, backend, MSA_ATTENTION_SPARSE, &n_sparse);
    assert_int_equal(n_sparse, 2);
    record *off = run(dir, backend, MSA_ATTENTION_DENSE, &n_sparse);
    expect_same_logits(dense_dir, "selected", dense, all);
    expect_same_logits(dense_dir, "switched off", dense, off);
    record_free(dense);
    record_free(all);
    record_free(off);
}

static void check_golden(const char *name, const char *architecture)
{
    golden g;
    if (!golden_open(&g, name)) skip();
    folder out = folder_create(), small_blocks = folder_create();
    msa_convert_args args = arguments(g.dir, &out);
    args.block_size = args.topk_blocks = 0; /* 128 and 16 */
    EXPECT_OK(convert(&args));
    expect_same_model(g.dir, out.dir, "cpu");
    args = arguments(g.dir, &small_blocks);
    EXPECT_OK(convert(&args));
    expect_same_model(g.dir, small_blocks.dir, "ref");

    subject s;
    subject_open(&s, small_blocks.dir, "cpu", NULL, 2);
    assert_string_equal(s.info.architecture, architecture);
    assert_int_equal(s.info.index_dim, s.info.head_dim);
    assert_int_equal(s.info.block_size, 16);
    assert_int_equal(s.info.topk_blocks, 64);
    record *r = run_tokens(&s, g.tokens, g.n_tokens, MSA_DTYPE_F32, MSA_DTYPE_F32,
                           (int32_t)g.n_tokens, g.n_tokens, MSA_ATTENTION_SPARSE);
    expect_near(&g, r, 1e-4);
    record_free(r);
    subject_close(&s);
    golden_close(&g);
    folder_remove(&out);
    folder_remove(&small_blocks);
}

static void test_llama(void **state)
{
    (void)state;
    check_golden("llama-a", "MSALlamaForCausalLM");
}

static void test_qwen3(void **state)
{
    (void)state;
    check_golden("qwen3-a", "MSAQwen3ForCausalLM");
}

static void test_m3_shape(void **state)
{
    (void)state;
    folder source = folder_create(), out = folder_create();
    make_m3(&source, 3, 0);
    msa_convert_args args = arguments(source.dir, &out);
    EXPECT_OK(convert(&args));
    expect_same_model(source.dir, out.dir, "ref");
    expect_same_model(source.dir, out.dir, "cpu");
    folder_remove(&source);
    folder_remove(&out);
}

/* The names and the config of transformers, gate and up fused. */
static void test_m3_shape_of_transformers(void **state)
{
    (void)state;
    folder source = folder_create(), fused = folder_create(), out = folder_create();
    make_m3(&source, 3, 0);
    tensor_set released = tensors_read(source.dir);
    tensor_set renamed = tensors_to_transformers(&released, "model.");
    tensors_write(&renamed, &fused, 2);
    folder_copy(&fused, source.dir, "config.json");
    msa_convert_args args = arguments(fused.dir, &out);
    EXPECT_OK(convert(&args));
    expect_same_model(source.dir, out.dir, "ref");
    expect_same_model(source.dir, out.dir, "cpu");
    tensors_free(&released);
    tensors_free(&renamed);
    folder_remove(&source);
    folder_remove(&fused);
    folder_remove(&out);
}

/* ---- what is written ----------------------------------------------------------------------- */

static float element(const named_tensor *t, int64_t i)
{
    uint32_t bits = (uint32_t)((const uint16_t *)(const void *)t->data)[i] << 16;
    float x;
    assert_int_equal(t->dtype, MSA_DTYPE_BF16);
    memcpy(&x, &bits, sizeof(x));
    return x;
}

static void expect_mean(const named_tensor *index, const named_tensor *heads, int64_t group,
                        int64_t n_parts)
{
    int64_t size = 16 * index->shape[1]; /* a head of llama-a */
    for (int64_t i = 0; i < size; i++) {
        float sum = 0, mean;
        for (int64_t p = 0; p < n_parts; p++) {
            sum += element(heads, (group * n_parts + p) * size + i);
        }
        mean = sum / (float)n_parts;
        float got = element(index, group * size + i);
        if (got - mean > 0.005f * (mean > 0 ? mean : -mean) + 1e-6f ||
            mean - got > 0.005f * (mean > 0 ? mean : -mean) + 1e-6f) {
            fail_msg("%s: element %lld is %g, must be %g", index->name, (long long)i, (double)got,
                     (double)mean);
        }
    }
}

/* The backbone keeps its bytes; the index begins as the mean of the heads. */
static void test_weights(void **state)
{
    (void)state;
    golden g;
    if (!golden_open(&g, "llama-a")) skip();
    folder out = folder_create();
    const int32_t dense_layers[] = {1, 2};
    msa_convert_args args = arguments(g.dir, &out);
    args.dense_layers = dense_layers;
    args.n_dense_layers = 2;
    EXPECT_OK(convert(&args));
    tensor_set source = tensors_read(g.dir), target = tensors_read(out.dir);
    assert_int_equal(target.n, source.n + 4);
    for (int64_t i = 0; i < source.n; i++) {
        const named_tensor *t = tensors_find(&target, source.items[i].name);
        assert_int_equal(t->dtype, source.items[i].dtype);
        assert_int_equal(t->bytes, source.items[i].bytes);
        assert_memory_equal(t->data, source.items[i].data, t->bytes);
    }
#define LAYER0 "model.layers.0.self_attn."
    const named_tensor *index_q = tensors_find(&target, LAYER0 "index_q_proj.weight");
    expect_mean(index_q, tensors_find(&source, LAYER0 "q_proj.weight"), 0, 3);
    expect_mean(index_q, tensors_find(&source, LAYER0 "q_proj.weight"), 1, 3);
    expect_mean(tensors_find(&target, LAYER0 "index_k_proj.weight"),
                tensors_find(&source, LAYER0 "k_proj.weight"), 0, 2);
    const named_tensor *norm = tensors_find(&target, LAYER0 "index_q_norm.weight");
    for (int64_t i = 0; i < norm->shape[0]; i++) assert_true(element(norm, i) == 1.0f);
    tensors_free(&source);
    tensors_free(&target);
    golden_close(&g);
    folder_remove(&out);
}

/* Side files come along, and the result is no source again. */
static void test_folder(void **state)
{
    (void)state;
    folder source = folder_create(), out = folder_create(), again = folder_create();
    size_t n;
    make_m3(&source, 3, 0);
    msa_convert_args args = arguments(source.dir, &out);
    EXPECT_OK(convert(&args));
    assert_int_equal(folder_count(&out), folder_count(&source));
    char *text = read_whole_file(folder_path(&out, "config.json"), &n);
    assert_non_null(strstr(text, "\"sparse_attention_freq\": [0, 1, 1]"));
    assert_non_null(strstr(text, "\"sparse_topk_blocks\": 64"));
    free(text);

    EXPECT_FAIL(MSA_EINVAL, "must be empty or not exist", convert(&args));
    args = arguments(out.dir, &again);
    EXPECT_FAIL(MSA_EUNSUPPORTED, "selects blocks already, must have full attention",
                convert(&args));
    assert_int_equal(folder_count(&again), 0);
    folder_remove(&source);
    folder_remove(&out);
    folder_remove(&again);
}

/* ---- refusals ------------------------------------------------------------------------------ */

static void write_config(const folder *f, const char *text)
{
    folder_write(f, "config.json", text, strlen(text));
}

/* The config with a key put in front of all others. */
static void add_key(const folder *f, const char *key)
{
    size_t n;
    char *text = read_whole_file(folder_path(f, "config.json"), &n);
    size_t room = n + strlen(key) + 4;
    char *changed = malloc(room);
    assert_non_null(changed);
    snprintf(changed, room, "{%s, %s", key, strchr(text, '{') + 1);
    write_config(f, changed);
    free(text);
    free(changed);
}

static void test_sources_that_are_refused(void **state)
{
    (void)state;
    folder source = folder_create(), quantized = folder_create(), out = folder_create();
    make_m3(&source, 2, 0);
    make_m3(&quantized, 3, 1);
    msa_convert_args args = arguments(source.dir, &out);
    EXPECT_FAIL(MSA_EUNSUPPORTED, "layer 2 of ", convert(&args));
    args = arguments(quantized.dir, &out);
    EXPECT_FAIL(MSA_EUNSUPPORTED, "has MXFP8 weights, must be f32, bf16 or f16", convert(&args));
    folder_remove(&source);
    folder_remove(&quantized);

    source = folder_create();
    make_m3(&source, 3, 0);
    add_key(&source, "\"vision_config\": {\"hidden_size\": 8}");
    args = arguments(source.dir, &out);
    EXPECT_FAIL(MSA_EUNSUPPORTED, "vision_config = {…}, vision parts are not carried over",
                convert(&args));
    write_config(&source, "{\"architectures\": [\"GPT2LMHeadModel\"]}");
    EXPECT_FAIL(MSA_EUNSUPPORTED, "architectures[0] = \"GPT2LMHeadModel\"", convert(&args));
    write_config(&source, "{\"architectures\": [\"LlamaForCausalLM\"], \"attention_bias\": true}");
    EXPECT_FAIL(MSA_EUNSUPPORTED, "attention_bias = true, only false", convert(&args));
    assert_int_equal(folder_count(&out), 0);
    folder_remove(&source);
    folder_remove(&out);
}

static void test_groups_that_are_too_large(void **state)
{
    (void)state;
    static const char config[] =
        "{\"architectures\": [\"LlamaForCausalLM\"], \"num_hidden_layers\": 2, \"hidden_size\": "
        "640,"
        " \"vocab_size\": 16, \"num_attention_heads\": 40, \"num_key_value_heads\": 1,"
        " \"max_position_embeddings\": 64, \"rms_norm_eps\": 1e-5, \"hidden_act\": \"silu\","
        " \"intermediate_size\": 16}";
    folder source = folder_create(), out = folder_create();
    write_config(&source, config);
    msa_convert_args args = arguments(source.dir, &out);
    EXPECT_FAIL(MSA_EUNSUPPORTED, "40 query heads for 1 key/value heads", convert(&args));
    folder_remove(&source);
    folder_remove(&out);
}

static void test_arguments_that_are_refused(void **state)
{
    (void)state;
    golden g;
    if (!golden_open(&g, "qwen3-a")) skip();
    folder out = folder_create();
    const int32_t unordered[] = {1, 0}, outside[] = {0, 3}, all[] = {0, 1, 2};
    msa_convert_args args = arguments(g.dir, &out);
    args.block_size = 96;
    EXPECT_FAIL(MSA_EINVAL, "block_size = 96, must be a power of two", convert(&args));
    args.block_size = 512;
    EXPECT_FAIL(MSA_EINVAL, "block_size = 512, must be in 16..256", convert(&args));
    args = arguments(g.dir, &out);
    args.topk_blocks = 65;
    EXPECT_FAIL(MSA_EINVAL, "topk_blocks = 65, must be in 1..64", convert(&args));
    args.topk_blocks = 4;
    args.n_init_blocks = 4;
    EXPECT_FAIL(MSA_EINVAL, "n_init_blocks = 4, must be in 0..3", convert(&args));
    args = arguments(g.dir, &out);
    args.dense_layers = unordered;
    args.n_dense_layers = 2;
    EXPECT_FAIL(MSA_EINVAL, "dense_layers = 0, must be in 2..2", convert(&args));
    args.dense_layers = outside;
    EXPECT_FAIL(MSA_EINVAL, "dense_layers = 3, must be in 1..2", convert(&args));
    args.dense_layers = all;
    args.n_dense_layers = 3;
    EXPECT_FAIL(MSA_EINVAL, "n_dense_layers = 3, must be below the 3 layers", convert(&args));
    args.out_dir = NULL;
    EXPECT_FAIL(MSA_EINVAL, "out_dir = NULL", convert(&args));
    assert_int_equal(folder_count(&out), 0);
    golden_close(&g);
    folder_remove(&out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_llama),
        cmocka_unit_test(test_qwen3),
        cmocka_unit_test(test_m3_shape),
        cmocka_unit_test(test_m3_shape_of_transformers),
        cmocka_unit_test(test_weights),
        cmocka_unit_test(test_folder),
        cmocka_unit_test(test_sources_that_are_refused),
        cmocka_unit_test(test_groups_that_are_too_large),
        cmocka_unit_test(test_arguments_that_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
