/* Made models: whole folders that open, the same bytes for the same seed, sane weights. */
#include "harness/cmocka_all.h"
#include "model/folder.h"

#include "msa/model.h"
#include "msa/safetensors.h"

#include "base/numeric.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

static msa_context *ctx;

static int open_context(void **state)
{
    (void)state;
    msa_context_args args;
    msa_context_args_init(&args);
    args.n_threads = 1;
    return msa_context_create(&ctx, &args);
}

static int close_context(void **state)
{
    (void)state;
    msa_context_destroy(ctx);
    return 0;
}

static uint64_t hash_file(const folder *f, const char *name)
{
    size_t n;
    char *bytes = read_whole_file(folder_path(f, name), &n);
    uint64_t hash = 14695981039346656037u;
    for (size_t i = 0; i < n; i++) hash = (hash ^ (unsigned char)bytes[i]) * 1099511628211u;
    free(bytes);
    return hash;
}

static void count_progress(void *user, int64_t done, int64_t total)
{
    int64_t *last = user;
    assert_true(done > *last && done <= total);
    *last = done;
    if (done == total) *last = -1; /* nothing may come after the end */
}

static void test_made_folders_open(void **state)
{
    (void)state;
    static const char *const presets[] = {"tiny", "mxfp8-tiny"};
    for (int i = 0; i < 2; i++) {
        folder f = folder_create();
        int64_t progress = 0;
        EXPECT_OK(msa_model_make(f.dir, presets[i], 1, count_progress, &progress));
        assert_int_equal(progress, -1);
        assert_int_equal(folder_count(&f), 5);
        msa_model *model;
        msa_model_info info, from_config;
        msa_generation_config generation;
        msa_tokenizer *tokenizer;
        msa_model_info_init(&info);
        msa_model_info_init(&from_config);
        msa_generation_config_init(&generation);
        EXPECT_OK(msa_model_open(&model, ctx, f.dir));
        EXPECT_OK(msa_model_verify(model, NULL, NULL));
        EXPECT_OK(msa_model_get_info(model, &info));
        EXPECT_OK(msa_model_info_from_config(f.dir, &from_config));
        assert_memory_equal(&info, &from_config, sizeof(info));
        assert_int_equal(info.n_layers, 4);
        assert_int_equal(info.n_sparse_layers, 3);
        assert_int_equal(info.n_moe_layers, 3);
        assert_string_equal(info.quantization, i ? "mxfp8" : "");
        EXPECT_OK(msa_model_generation_config(model, &generation));
        EXPECT_OK(msa_tokenizer_open(&tokenizer, f.dir));
        assert_true(msa_tokenizer_size(tokenizer) <= info.vocab_size);
        assert_int_equal(msa_tokenizer_find(tokenizer, "[e~["), generation.eos_token_ids[0]);
        assert_int_equal(msa_tokenizer_find(tokenizer, "]~b]"), generation.bos_token_id);
        assert_int_equal(msa_tokenizer_find(tokenizer, "</mm:think>"), 256 + 60);
        msa_tokenizer_close(tokenizer);
        msa_model_close(model);
        folder_remove(&f);
    }
}

/* Every byte is the token of its own value. */
static void test_made_tokenizer_is_bytes(void **state)
{
    (void)state;
    static const char text[] = "Hi, w\xC3\xB6rld\n\t \xF0\x9F\x98\x80 3.14";
    folder f = folder_create();
    msa_tokenizer *tokenizer;
    int32_t *ids, byte;
    size_t n;
    char *back;
    EXPECT_OK(msa_model_make(f.dir, "tiny", 1, NULL, NULL));
    EXPECT_OK(msa_tokenizer_open(&tokenizer, f.dir));
    EXPECT_OK(msa_tokenizer_encode(tokenizer, text, sizeof(text) - 1, &ids, &n));
    assert_int_equal(n, sizeof(text) - 1);
    for (size_t i = 0; i < n; i++) assert_int_equal(ids[i], (unsigned char)text[i]);
    msa_free(ids);
    for (byte = 0; byte < 256; byte++) {
        EXPECT_OK(msa_tokenizer_decode(tokenizer, &byte, 1, &back, &n));
        assert_int_equal(n, 1);
        assert_int_equal((unsigned char)back[0], byte);
        msa_free(back);
    }
    msa_tokenizer_close(tokenizer);
    folder_remove(&f);
}

/* The hash is that of another machine's file: bytes must not depend on compiler or instruction set.
 */
static void test_same_seed_same_bytes(void **state)
{
    (void)state;
    folder a = folder_create(), b = folder_create(), c = folder_create();
    EXPECT_OK(msa_model_make(a.dir, "tiny", 7, NULL, NULL));
    EXPECT_OK(msa_model_make(b.dir, "tiny", 7, NULL, NULL));
    EXPECT_OK(msa_model_make(c.dir, "tiny", 8, NULL, NULL));
    uint64_t hash = hash_file(&a, "model.safetensors");
    assert_int_equal(hash, hash_file(&b, "model.safetensors"));
    assert_int_not_equal(hash, hash_file(&c, "model.safetensors"));
    assert_int_equal(hash, UINT64_C(13203852940222775819));
    EXPECT_OK(msa_model_make(b.dir, "mxfp8-tiny", 7, NULL, NULL)); /* replaces the files */
    assert_int_equal(hash_file(&b, "model.safetensors"), UINT64_C(9424527181037252948));
    folder_remove(&a);
    folder_remove(&b);
    folder_remove(&c);
}

/* Spread of a tensor, dequantised. */
static double spread_of(const msa_safetensors *file, const char *name, double *mean)
{
    char scale_name[160];
    msa_tensor t, scales = {0};
    int64_t at = msa_safetensors_find(file, name), n = 1;
    EXPECT_OK(msa_safetensors_get(file, at, &t));
    snprintf(scale_name, sizeof(scale_name), "%s_scale_inv", name);
    at = msa_safetensors_find(file, scale_name);
    if (at >= 0) EXPECT_OK(msa_safetensors_get(file, at, &scales));
    for (int32_t i = 0; i < t.n_dims; i++) n *= t.shape[i];
    double sum = 0, squares = 0;
    for (int64_t i = 0; i < n; i++) {
        double x = (double)load_f32(t.data, t.dtype, i);
        if (scales.data) x *= (double)e8m0_to_f32(((const uint8_t *)scales.data)[i / 32]);
        sum += x;
        squares += x * x;
    }
    *mean = sum / (double)n;
    return sqrt(squares / (double)n);
}

static void expect_spread(const msa_safetensors *file, const char *name, double expected)
{
    double mean, spread = spread_of(file, name, &mean);
    if (fabs(spread / expected - 1) > 0.12) {
        fail_msg("%s: spread %g, expected %g", name, spread, expected);
    }
    assert_true(fabs(mean) < 0.1 * spread + 0.02 * expected);
}

static void test_weights_have_their_spreads(void **state)
{
    (void)state;
    folder f = folder_create();
    msa_safetensors *file;
    EXPECT_OK(msa_model_make(f.dir, "tiny", 3, NULL, NULL));
    EXPECT_OK(msa_safetensors_open(&file, folder_path(&f, "model.safetensors")));
    expect_spread(file, "language_model.model.embed_tokens.weight", 1);
    expect_spread(file, "language_model.model.layers.2.self_attn.q_proj.weight", 1 / 8.0);
    expect_spread(file, "language_model.model.layers.2.self_attn.o_proj.weight",
                  1 / sqrt(128.0 * 8));
    expect_spread(file, "language_model.lm_head.weight", 2 / 8.0);
    msa_safetensors_close(file);
    EXPECT_OK(msa_model_make(f.dir, "mxfp8-tiny", 3, NULL, NULL));
    EXPECT_OK(msa_safetensors_open(&file, folder_path(&f, "model.safetensors")));
    /* one group in four has half the scale: sqrt(3/4 + 1/4 * 1/4) of the plain spread */
    expect_spread(file, "language_model.model.layers.2.self_attn.q_proj.weight",
                  sqrt(0.8125) / sqrt(128.0));
    msa_safetensors_close(file);
    folder_remove(&f);
}

static void test_make_refuses(void **state)
{
    (void)state;
    const char *description = NULL;
    EXPECT_FAIL(MSA_EINVAL, "preset = huge, must be one of tiny, mxfp8-tiny, small, 1b",
                msa_model_make("/tmp", "huge", 1, NULL, NULL));
    EXPECT_FAIL(MSA_EINVAL, "dir = NULL", msa_model_make(NULL, "tiny", 1, NULL, NULL));
    EXPECT_FAIL(MSA_EIO, "/nowhere/x: No such file",
                msa_model_make("/nowhere/x", "tiny", 1, NULL, NULL));
    assert_string_equal(msa_model_preset(0, &description), "tiny");
    assert_non_null(description);
    assert_null(msa_model_preset(4, &description));
    assert_null(msa_model_preset(-1, NULL));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_made_folders_open),
        cmocka_unit_test(test_made_tokenizer_is_bytes),
        cmocka_unit_test(test_same_seed_same_bytes),
        cmocka_unit_test(test_weights_have_their_spreads),
        cmocka_unit_test(test_make_refuses),
    };
    return cmocka_run_group_tests(tests, open_context, close_context);
}
