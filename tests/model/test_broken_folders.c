/* Broken model folders: each fault gives one line that names file, tensor and rule; running out of
 * memory anywhere is an error and leaks nothing. */
#include "harness/cmocka_all.h"
#include "harness/test_alloc.h"
#include "model/folder.h"
#include "model/tensors.h"

#include "msa/model.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#define LAYER1 "language_model.model.layers.1."

static char golden_dir[512]; /* mxfp8-a */
static msa_context *ctx;

static int open_context(void **state)
{
    (void)state;
    msa_context_args args;
    msa_context_args_init(&args);
    args.n_threads = 1;
    snprintf(golden_dir, sizeof(golden_dir), "%s", golden_model_dir("mxfp8-a"));
    return msa_context_create(&ctx, &args);
}

static int close_context(void **state)
{
    (void)state;
    msa_context_destroy(ctx);
    return 0;
}

static msa_status open_once(const char *dir)
{
    msa_model *model;
    msa_status status = msa_model_open(&model, ctx, dir);
    if (status == MSA_OK) msa_model_close(model);
    return status;
}

/* ---- tensors
 * ------------------------------------------------------------------------------------------ */

static void expect_set_refused(const tensor_set *set, const char *message)
{
    folder f = folder_create();
    folder_copy(&f, golden_dir, "config.json");
    tensors_write(set, &f, 1);
    EXPECT_FAIL(MSA_EFORMAT, message, open_once(f.dir));
    folder_remove(&f);
}

static void test_missing_tensors(void **state)
{
    (void)state;
    static const char *const names[] = {
        "language_model.model.embed_tokens.weight",
        "language_model.model.norm.weight",
        "language_model.lm_head.weight",
        LAYER1 "input_layernorm.weight",
        LAYER1 "self_attn.o_proj.weight",
        LAYER1 "self_attn.index_q_norm.weight",
        LAYER1 "block_sparse_moe.gate.weight",
        LAYER1 "block_sparse_moe.e_score_correction_bias",
        LAYER1 "block_sparse_moe.experts.7.w3.weight",
        LAYER1 "block_sparse_moe.shared_experts.up_proj.weight",
        LAYER1 "block_sparse_moe.experts.7.w3.weight_scale_inv",
    };
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        char message[200];
        tensor_set set = tensors_read(golden_dir);
        tensors_drop(&set, names[i]);
        snprintf(message, sizeof(message), "tensor %s is missing", names[i]);
        expect_set_refused(&set, message);
        tensors_free(&set);
    }
}

static void expect_replaced_refused(const char *name, msa_dtype dtype, int32_t n_dims, int64_t d0,
                                    int64_t d1, const char *message)
{
    tensor_set set = tensors_read(golden_dir);
    const int64_t shape[2] = {d0, d1};
    tensors_drop(&set, name);
    tensors_add(&set, name, dtype, n_dims, shape);
    expect_set_refused(&set, message);
    tensors_free(&set);
}

static void test_wrong_shapes_and_dtypes(void **state)
{
    (void)state;
    expect_replaced_refused(LAYER1 "self_attn.q_proj.weight", MSA_DTYPE_F8_E4M3, 2, 256, 64,
                            "self_attn.q_proj.weight: shape [256, 64], must be [256, 128] by "
                            "config.json");
    expect_replaced_refused(LAYER1 "self_attn.q_proj.weight", MSA_DTYPE_F8_E4M3, 1, 256 * 128, 1,
                            "shape [32768], must be [256, 128]");
    expect_replaced_refused(LAYER1 "self_attn.q_proj.weight", MSA_DTYPE_BF16, 2, 256, 128,
                            "dtype bf16, must be fp8_e4m3 by quantization_config");
    expect_replaced_refused(LAYER1 "self_attn.q_proj.weight_scale_inv", MSA_DTYPE_F32, 2, 256, 4,
                            "q_proj.weight_scale_inv: dtype f32, must be u8 (E8M0)");
    expect_replaced_refused(LAYER1 "self_attn.q_proj.weight_scale_inv", MSA_DTYPE_U8, 2, 256, 1,
                            "shape [256, 1], must be [256, 4]");
    expect_replaced_refused(LAYER1 "input_layernorm.weight", MSA_DTYPE_I32, 1, 128, 1,
                            "dtype i32, must be f32, bf16 or f16");
    expect_replaced_refused(LAYER1 "block_sparse_moe.e_score_correction_bias", MSA_DTYPE_BF16, 1, 8,
                            1, "dtype bf16, must be f32");
    expect_replaced_refused(LAYER1 "block_sparse_moe.gate.weight", MSA_DTYPE_F8_E4M3, 2, 8, 128,
                            "gate.weight: dtype fp8_e4m3, must be f32, bf16 or f16");
    expect_replaced_refused("language_model.model.embed_tokens.weight", MSA_DTYPE_BF16, 2, 255, 128,
                            "embed_tokens.weight: shape [255, 128], must be [256, 128]");
}

static void test_small_vectors_must_be_finite(void **state)
{
    (void)state;
    const float nan_value = NAN;
    const uint16_t infinity = 0x7f80;
    tensor_set set = tensors_read(golden_dir);
    memcpy(tensors_find(&set, LAYER1 "block_sparse_moe.e_score_correction_bias")->data + 12,
           &nan_value, 4);
    expect_set_refused(&set, "e_score_correction_bias: element 3 is NaN, must be finite");
    tensors_free(&set);
    set = tensors_read(golden_dir);
    memcpy(tensors_find(&set, "language_model.model.norm.weight")->data + 2, &infinity, 2);
    expect_set_refused(&set, "norm.weight: element 1 is infinite, must be finite");
    tensors_free(&set);
}

/* The matrices are looked at only when asked for. */
static void expect_verify_refused(const char *name, size_t element, size_t element_bytes,
                                  const char *message)
{
    folder f = folder_create();
    msa_model *model;
    tensor_set set = tensors_read(golden_dir);
    memset(tensors_find(&set, name)->data + element * element_bytes, 0xff, element_bytes);
    folder_copy(&f, golden_dir, "config.json");
    tensors_write(&set, &f, 2);
    EXPECT_OK(msa_model_open(&model, ctx, f.dir));
    EXPECT_FAIL(MSA_EFORMAT, message, msa_model_verify(model, NULL, NULL));
    msa_model_close(model);
    tensors_free(&set);
    folder_remove(&f);
}

static void count_progress(void *user, int64_t done, int64_t total)
{
    int64_t *last = user;
    assert_true(done >= *last && done <= total);
    *last = done;
}

static void test_verify_reads_every_weight(void **state)
{
    (void)state;
    expect_verify_refused(LAYER1 "self_attn.v_proj.weight", 77, 1,
                          "tensor " LAYER1 "self_attn.v_proj.weight: element 77 is not finite");
    expect_verify_refused(LAYER1 "self_attn.v_proj.weight_scale_inv", 5, 1,
                          "v_proj.weight_scale_inv: element 5 is not finite");
    expect_verify_refused("language_model.lm_head.weight", 32640, 2,
                          "lm_head.weight: element 32640 is not finite");
    expect_verify_refused(LAYER1 "block_sparse_moe.gate.weight", 99, 4, "element 99");
    msa_model *model;
    int64_t last = 0;
    EXPECT_OK(msa_model_open(&model, ctx, golden_dir));
    EXPECT_OK(msa_model_verify(model, count_progress, &last));
    assert_true(last > 1200000);
    msa_model_close(model);
}

/* ---- files
 * -------------------------------------------------------------------------------------------- */

static void test_missing_files(void **state)
{
    (void)state;
    folder f = folder_create();
    EXPECT_FAIL(MSA_EIO, "config.json: No such file", open_once(f.dir));
    folder_copy(&f, golden_dir, "config.json");
    EXPECT_FAIL(MSA_EIO, "model.safetensors: No such file", open_once(f.dir));
    folder_remove(&f);
    EXPECT_FAIL(MSA_EINVAL, "dir = NULL", open_once(NULL));
}

static void expect_index_refused(const char *index, msa_status code, const char *message)
{
    folder f = folder_create();
    folder_copy(&f, golden_dir, "config.json");
    folder_copy(&f, golden_dir, "model.safetensors");
    folder_write(&f, "model.safetensors.index.json", index, strlen(index));
    EXPECT_FAIL(code, message, open_once(f.dir));
    folder_remove(&f);
}

#define NORM "\"language_model.model.norm.weight\""

static void test_wrong_indices(void **state)
{
    (void)state;
    expect_index_refused("{}", MSA_EFORMAT, "model.safetensors.index.json: weight_map is missing");
    expect_index_refused("{\"weight_map\":[]}", MSA_EFORMAT, "weight_map = [0 items]");
    expect_index_refused("{\"weight_map\":{" NORM ":1}}", MSA_EFORMAT, "must be a string");
    expect_index_refused("{\"weight_map\":{" NORM ":\"../model.safetensors\"}}", MSA_EFORMAT,
                         "must be a file name in this folder");
    expect_index_refused("{\"weight_map\":{" NORM ":\"/etc/passwd\"}}", MSA_EFORMAT,
                         "must be a file name in this folder");
    expect_index_refused("{\"weight_map\":{" NORM ":\"..\"}}", MSA_EFORMAT, "must be a file name");
    expect_index_refused("{\"weight_map\":{" NORM ":\"\"}}", MSA_EFORMAT, "must be a file name");
    expect_index_refused("{\"weight_map\":{" NORM ":\"none.safetensors\"}}", MSA_EIO,
                         "none.safetensors: No such file");
    expect_index_refused("{\"weight_map\":{\"what\":\"model.safetensors\"}}", MSA_EFORMAT,
                         "weight_map.what = \"model.safetensors\", that file has no such tensor");
}

static void test_tensor_in_two_shards(void **state)
{
    (void)state;
    static const char index[] =
        "{\"weight_map\":{\"a\":\"model.safetensors\",\"b\":\"other.safetensors\"}}";
    folder f = folder_create();
    folder_copy(&f, golden_dir, "config.json");
    folder_copy(&f, golden_dir, "model.safetensors");
    char from[600];
    size_t n;
    snprintf(from, sizeof(from), "%s/model.safetensors", golden_dir);
    char *bytes = read_whole_file(from, &n);
    folder_write(&f, "other.safetensors", bytes, n);
    free(bytes);
    folder_write(&f, "model.safetensors.index.json", index, strlen(index));
    EXPECT_FAIL(MSA_EFORMAT, "is also in another shard", open_once(f.dir));
    folder_remove(&f);
}

static void test_generation_config(void **state)
{
    (void)state;
    static const char text[] = "{\"do_sample\": true, \"temperature\": 0.7, \"top_p\": null, "
                               "\"top_k\": 40, \"bos_token_id\": 9, \"eos_token_id\": [3, 4]}";
    static const char wrong[] = "{\"top_p\": 1.5}";
    folder f = folder_create();
    msa_model *model;
    msa_generation_config g;
    msa_generation_config_init(&g);
    EXPECT_OK(msa_model_open(&model, ctx, golden_dir)); /* has none: greedy, tokens of the config */
    EXPECT_OK(msa_model_generation_config(model, &g));
    assert_int_equal(g.do_sample, 0);
    assert_int_equal(g.bos_token_id, 0);
    assert_int_equal(g.n_eos, 1);
    assert_int_equal(g.eos_token_ids[0], 1);
    msa_model_close(model);
    folder_copy(&f, golden_dir, "config.json");
    folder_copy(&f, golden_dir, "model.safetensors");
    folder_write(&f, "generation_config.json", text, strlen(text));
    EXPECT_OK(msa_model_open(&model, ctx, f.dir));
    EXPECT_OK(msa_model_generation_config(model, &g));
    assert_int_equal(g.do_sample, 1);
    assert_true(g.temperature == 0.7f && g.top_p == 1.0f);
    assert_int_equal(g.top_k, 40);
    assert_int_equal(g.bos_token_id, 9);
    assert_int_equal(g.n_eos, 2);
    assert_int_equal(g.eos_token_ids[1], 4);
    g.struct_size = 0;
    EXPECT_FAIL(MSA_EINVAL, "struct_size = 0", msa_model_generation_config(model, &g));
    msa_model_close(model);
    folder_write(&f, "generation_config.json", wrong, strlen(wrong));
    EXPECT_FAIL(MSA_EFORMAT, "generation_config.json: top_p = 1.5, must be in 0..1",
                open_once(f.dir));
    folder_remove(&f);
}

/* ---- memory
 * -------------------------------------------------------------------------------------------- */

static void test_oom_model_open(void **state)
{
    (void)state;
    folder f = folder_create();
    tensor_set set = tensors_read(golden_dir);
    folder_copy(&f, golden_dir, "config.json");
    tensors_write(&set, &f, 3);
    tensors_free(&set);
    int64_t n = 1;
    for (;; n++) {
        test_alloc memory;
        msa_context_args args;
        msa_context *local;
        msa_model *model;
        test_alloc_begin(&memory, 0);
        msa_context_args_init(&args);
        args.allocator = &memory.allocator;
        args.n_threads = 1;
        EXPECT_OK(msa_context_create(&local, &args));
        memory.fail_at = memory.n_calls + n;
        msa_status status = msa_model_open(&model, local, f.dir);
        if (status == MSA_OK) {
            msa_model_close(model);
        } else {
            assert_int_equal(status, MSA_ENOMEM);
            assert_null(model);
        }
        msa_context_destroy(local);
        test_alloc_end(&memory);
        if (status == MSA_OK) break;
    }
    assert_true(n > 20);
    folder_remove(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_missing_tensors),
        cmocka_unit_test(test_wrong_shapes_and_dtypes),
        cmocka_unit_test(test_small_vectors_must_be_finite),
        cmocka_unit_test(test_verify_reads_every_weight),
        cmocka_unit_test(test_missing_files),
        cmocka_unit_test(test_wrong_indices),
        cmocka_unit_test(test_tensor_in_two_shards),
        cmocka_unit_test(test_generation_config),
        cmocka_unit_test(test_oom_model_open),
    };
    return cmocka_run_group_tests(tests, open_context, close_context);
}
