/* Folders with MXFP8 weights: what is written, what it computes, what is refused, and what the
 * reader of an MXFP8 embedding refuses. */
#include "golden/run.h"
#include "harness/cmocka_all.h"
#include "harness/failing_malloc.h"
#include "model/make_preset.h"
#include "model/tensors.h"
#include "msa/convert.h"

#include "base/numeric.h"

#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

/* Experts 48 wide, so that their w2 has inputs that groups of 32 do not divide. */
static const msa__preset preset = {.name = "quantize",
                                   .description = "",
                                   .hidden_size = 64,
                                   .n_layers = 3,
                                   .n_full_layers = 1,
                                   .n_dense_layers = 1,
                                   .n_q_heads = 4,
                                   .n_kv_heads = 2,
                                   .head_dim = 32,
                                   .block_size = 16,
                                   .topk_blocks = 3,
                                   .n_experts = 4,
                                   .n_experts_per_token = 2,
                                   .expert_width = 48,
                                   .shared_width = 64,
                                   .dense_width = 96,
                                   .max_positions = 1024};

static folder make_source(void)
{
    folder f = folder_create();
    EXPECT_OK(msa__preset_make(f.dir, &preset, 5, NULL, NULL));
    return f;
}

static void change_config(const folder *f, const char *from, const char *to)
{
    size_t n;
    char *text = read_whole_file(folder_path(f, "config.json"), &n);
    char *at = strstr(text, from), *changed = malloc(n + strlen(to) + 1);
    assert_non_null(at);
    assert_non_null(changed);
    size_t head = (size_t)(at - text);
    memcpy(changed, text, head);
    int tail = sprintf(changed + head, "%s%s", to, at + strlen(from));
    folder_write(f, "config.json", changed, head + (size_t)tail);
    free(text);
    free(changed);
}

/* The same with the embedding as output head. */
static folder make_tied_source(void)
{
    folder f = make_source();
    tensor_set set = tensors_read(f.dir);
    tensors_drop(&set, "language_model.lm_head.weight");
    tensors_write(&set, &f, 1);
    tensors_free(&set);
    change_config(&f, "\"tie_word_embeddings\": false", "\"tie_word_embeddings\": true");
    return f;
}

static msa_quantize_args arguments(const folder *source, const folder *out)
{
    msa_quantize_args args;
    msa_quantize_args_init(&args);
    args.source_dir = source->dir;
    args.out_dir = out->dir;
    return args;
}

static msa_status quantize(const msa_quantize_args *args)
{
    return msa_quantize(args, NULL, NULL, NULL);
}

/* ---- what is written ----------------------------------------------------------------------- */

static const named_tensor *find_scales(const tensor_set *set, const char *name)
{
    char scales[200];
    snprintf(scales, sizeof(scales), "%s_scale_inv", name);
    for (int64_t i = 0; i < set->n; i++) {
        if (!strcmp(set->items[i].name, scales)) return &set->items[i];
    }
    return NULL;
}

/* Every value within half a step of 1/8 of its power of two, or of the group's smallest step. */
static void expect_rounded(const named_tensor *source, const named_tensor *t,
                           const named_tensor *scales)
{
    assert_int_equal(t->dtype, MSA_DTYPE_F8_E4M3);
    assert_int_equal(scales->dtype, MSA_DTYPE_U8);
    assert_int_equal(scales->shape[0], t->shape[0]);
    assert_int_equal(scales->shape[1], t->shape[1] / 32);
    for (size_t i = 0; i < t->bytes; i++) {
        double x = (double)load_f32(source->data, source->dtype, (int64_t)i);
        double scale = (double)e8m0_to_f32(scales->data[i / 32]);
        double q = (double)fp8_to_f32(t->data[i]) * scale;
        if (fabs(x - q) <= fmax(fabs(x) / 16, scale * 0x1p-10)) continue;
        fail_msg("%s: element %zu = %g became %g", t->name, i, x, q);
    }
}

static void expect_tensors(const folder *source_dir, const folder *out, int64_t n_quantized)
{
    tensor_set source = tensors_read(source_dir->dir), target = tensors_read(out->dir);
    int64_t n = 0;
    for (int64_t i = 0; i < source.n; i++) {
        const named_tensor *before = &source.items[i];
        const named_tensor *after = tensors_find(&target, before->name);
        const named_tensor *scales = find_scales(&target, before->name);
        n += scales != NULL;
        if (scales) {
            expect_rounded(before, after, scales);
            continue;
        }
        assert_int_equal(after->dtype, before->dtype);
        assert_int_equal(after->bytes, before->bytes);
        assert_memory_equal(after->data, before->data, after->bytes);
    }
    assert_int_equal(n, n_quantized);
    assert_int_equal(target.n, source.n + n);
    tensors_free(&source);
    tensors_free(&target);
}

/* q, k, v, o in three layers, index_q and index_k in two, three matrices of the dense MLP, three
 * of each shared expert, and two of each expert. */
enum { N_INDEX = 4, N_MATRICES = 12 + N_INDEX + 3 + 6 + 16 };

static void expect_info(const msa_quantize_info *info, const folder *out)
{
    int64_t bytes = 0, n = 0, before = 0, after = 0;
    tensor_set set = tensors_read(out->dir);
    for (int64_t i = 0; i < set.n; i++) bytes += (int64_t)set.items[i].bytes;
    assert_int_equal(info->bytes, bytes);
    for (int32_t i = 0; i < MSA_QUANTIZE_KINDS; i++) {
        const msa_quantize_kind *kind = &info->kinds[i];
        n += kind->n_quantized;
        before += kind->source_bytes;
        after += kind->bytes;
        if (kind->n_quantized == 0)
            assert_true(kind->largest_error == 0);
        else
            assert_true(kind->largest_error > 0.02 && kind->largest_error < 0.04);
    }
    assert_int_equal(n, N_MATRICES);
    assert_int_equal(before, info->source_bytes);
    assert_int_equal(after, info->bytes);
    assert_int_equal(info->kinds[MSA_QUANTIZE_ATTENTION].n_quantized, 12);
    assert_int_equal(info->kinds[MSA_QUANTIZE_INDEX].n_quantized, N_INDEX);
    assert_int_equal(info->kinds[MSA_QUANTIZE_MLP].n_quantized, 9);
    assert_int_equal(info->kinds[MSA_QUANTIZE_EXPERT].n_quantized, 16);
    assert_int_equal(info->kinds[MSA_QUANTIZE_EXPERT].n_kept, 8);
    assert_int_equal(info->kinds[MSA_QUANTIZE_OTHER].n_quantized, 0);
    tensors_free(&set);
}

static void test_folder(void **state)
{
    (void)state;
    folder source = make_source(), out = folder_create(), twin = folder_create();
    msa_quantize_args args = arguments(&source, &out);
    msa_quantize_info info;
    msa_quantize_info_init(&info);
    EXPECT_OK(msa_quantize(&args, NULL, NULL, &info));
    expect_tensors(&source, &out, N_MATRICES);
    expect_info(&info, &out);
    assert_int_equal(folder_count(&out), folder_count(&source));

    size_t n, n_twin;
    char *text = read_whole_file(folder_path(&out, "config.json"), &n);
    assert_non_null(strstr(text, "\"weight_block_size\": [1, 32]"));
    assert_non_null(strstr(text, "\"model.embed_tokens\""));
    assert_non_null(strstr(text, "\"lm_head\""));
    assert_non_null(strstr(text, "\"language_model.model.layers.1.block_sparse_moe.gate\""));
    assert_non_null(
        strstr(text, "\"language_model.model.layers.2.block_sparse_moe.experts.3.w2\""));
    free(text);

    args.out_dir = twin.dir;
    EXPECT_OK(quantize(&args));
    text = read_whole_file(folder_path(&out, "model.safetensors"), &n);
    char *text_twin = read_whole_file(folder_path(&twin, "model.safetensors"), &n_twin);
    assert_int_equal(n, n_twin);
    assert_memory_equal(text, text_twin, n);
    free(text);
    free(text_twin);
    folder_remove(&source);
    folder_remove(&out);
    folder_remove(&twin);
}

static void test_modules_that_stay(void **state)
{
    (void)state;
    folder source = make_source(), out = folder_create(), shards = folder_create(),
           all = folder_create();
    const char *const keep[] = {"index_q_proj", "index_k_proj", "layers.0.self_attn"};
    msa_quantize_args args = arguments(&source, &out);
    args.keep = keep;
    args.n_keep = 3;
    EXPECT_OK(quantize(&args));
    expect_tensors(&source, &out, N_MATRICES - N_INDEX - 4);

    /* From the names of transformers, in shards; embedding and head, too. */
    tensor_set released = tensors_read(source.dir);
    tensor_set renamed = tensors_to_transformers(&released, "model.language_model.");
    tensors_write(&renamed, &shards, 2);
    folder_copy(&shards, source.dir, "config.json");
    args = arguments(&shards, &all);
    args.embedding = 1;
    EXPECT_OK(quantize(&args));
    expect_tensors(&source, &all, N_MATRICES + 2);
    tensors_free(&released);
    tensors_free(&renamed);
    folder_remove(&source);
    folder_remove(&out);
    folder_remove(&shards);
    folder_remove(&all);
}

/* ---- what it computes ---------------------------------------------------------------------- */

#define N_TOKENS 60

static record *run(const folder *f, const char *backend)
{
    subject s;
    int32_t tokens[N_TOKENS];
    subject_open(&s, f->dir, backend, NULL, 2);
    for (int32_t i = 0; i < N_TOKENS; i++) tokens[i] = (i * 37 + i / 7) % s.info.vocab_size;
    record *r = run_tokens(&s, tokens, N_TOKENS, MSA_DTYPE_F32, MSA_DTYPE_F32, 32, N_TOKENS - 3,
                           MSA_ATTENTION_DENSE);
    subject_close(&s);
    return r;
}

/* RMS difference of the logits over their RMS. */
static double compare_logits(const folder *a, const folder *b, const char *backend)
{
    record *one = run(a, backend), *two = run(b, backend);
    int64_t n = one->n_tokens * one->vocab;
    float *zeros = calloc((size_t)n, sizeof(*zeros));
    assert_non_null(zeros);
    double difference =
        rms_difference(one->logits, two->logits, n) / rms_difference(one->logits, zeros, n);
    free(zeros);
    record_free(one);
    record_free(two);
    return difference;
}

/* The folder that says the same without scales: codes times scales in bf16, which is exact. */
static folder make_plain(const folder *source, const folder *quantized)
{
    folder plain = folder_create();
    tensor_set set = tensors_read(quantized->dir), exact = {0};
    for (int64_t i = 0; i < set.n; i++) {
        const named_tensor *t = &set.items[i], *scales = find_scales(&set, t->name);
        if (t->dtype == MSA_DTYPE_U8) continue;
        msa_dtype dtype = scales ? MSA_DTYPE_BF16 : t->dtype;
        named_tensor *copy = tensors_add(&exact, t->name, dtype, t->n_dims, t->shape);
        for (size_t k = 0; scales && k < t->bytes; k++) {
            float x = fp8_to_f32(t->data[k]) * e8m0_to_f32(scales->data[k / 32]);
            store_f32(copy->data, dtype, (int64_t)k, x);
            assert_true(load_f32(copy->data, dtype, (int64_t)k) == x);
        }
        if (!scales) memcpy(copy->data, t->data, t->bytes);
    }
    tensors_write(&exact, &plain, 1);
    folder_copy(&plain, source->dir, "config.json");
    tensors_free(&set);
    tensors_free(&exact);
    return plain;
}

static void check_logits(const folder *source, int32_t embedding, const char *backend)
{
    folder out = folder_create();
    msa_quantize_args args = arguments(source, &out);
    args.embedding = embedding;
    EXPECT_OK(quantize(&args));
    folder plain = make_plain(source, &out);
    double loss = compare_logits(source, &out, backend);
    double reading = compare_logits(&plain, &out, backend);
    if (loss < 0.005 || loss > 0.15) fail_msg("%s: logits are %g off", backend, loss);
    if (reading > 1e-6) fail_msg("%s: scaled weights give logits %g off", backend, reading);
    folder_remove(&plain);
    folder_remove(&out);
}

static void test_logits(void **state)
{
    (void)state;
    folder source = make_source(), tied = make_tied_source();
    check_logits(&source, 0, "cpu");
    check_logits(&source, 1, "cpu");
    check_logits(&tied, 1, "cpu");
    check_logits(&tied, 1, "ref");
    folder_remove(&source);
    folder_remove(&tied);
}

/* ---- refusals ------------------------------------------------------------------------------ */

/* Change one element of a bf16 tensor and quantise. */
static void expect_refused_value(const folder *source, const char *name, uint16_t bits,
                                 const char *message)
{
    folder broken = folder_create(), out = folder_create();
    tensor_set set = tensors_read(source->dir);
    memcpy(tensors_find(&set, name)->data + 2 * 70, &bits, 2);
    tensors_write(&set, &broken, 1);
    folder_copy(&broken, source->dir, "config.json");
    msa_quantize_args args = arguments(&broken, &out);
    EXPECT_FAIL(MSA_EFORMAT, message, quantize(&args));
    assert_int_equal(folder_count(&out), 0);
    tensors_free(&set);
    folder_remove(&broken);
    folder_remove(&out);
}

static void test_sources_that_are_refused(void **state)
{
    (void)state;
    folder source = make_source(), out = folder_create(), again = folder_create();
    expect_refused_value(&source, "language_model.model.layers.1.self_attn.q_proj.weight", 0x7fc0,
                         "q_proj.weight: element 70 is NaN, must be finite");
    expect_refused_value(&source, "language_model.model.layers.0.mlp.up_proj.weight", 0xff80,
                         "up_proj.weight: element 70 is infinite, must be finite");
    msa_quantize_args args = arguments(&source, &out);
    EXPECT_OK(quantize(&args));
    EXPECT_FAIL(MSA_EINVAL, "must be empty or not exist", quantize(&args));
    args = arguments(&out, &again);
    EXPECT_FAIL(MSA_EUNSUPPORTED, "has MXFP8 weights already", quantize(&args));

    const int64_t shape[2] = {4, 4};
    tensor_set set = tensors_read(source.dir);
    (void)tensors_add(&set, "vision_tower.patch.weight", MSA_DTYPE_BF16, 2, shape);
    tensors_write(&set, &source, 1);
    tensors_free(&set);
    args = arguments(&source, &again);
    EXPECT_FAIL(MSA_EUNSUPPORTED, "tensor vision_tower.patch.weight is none of the text model",
                quantize(&args));

    change_config(&source, "{", "{\"quantization_config\": {\"quant_method\": \"gptq\"}, ");
    EXPECT_FAIL(MSA_EUNSUPPORTED, "quant_method = \"gptq\", only \"mxfp8\"", quantize(&args));
    static const char llama[] =
        "{\"architectures\": [\"LlamaForCausalLM\"], \"num_hidden_layers\": 1, \"hidden_size\": 64,"
        " \"vocab_size\": 16, \"num_attention_heads\": 2, \"max_position_embeddings\": 64,"
        " \"rms_norm_eps\": 1e-5, \"hidden_act\": \"silu\", \"intermediate_size\": 32}";
    folder_write(&source, "config.json", llama, sizeof(llama) - 1);
    EXPECT_FAIL(MSA_EUNSUPPORTED, "is a LlamaForCausalLM, must be of MiniMax-M3's shape",
                quantize(&args));
    assert_int_equal(folder_count(&again), 0);
    folder_remove(&source);
    folder_remove(&out);
    folder_remove(&again);
}

static void test_arguments_that_are_refused(void **state)
{
    (void)state;
    static const char *const names[] = {"lm_hea", "input_layernorm", "", "\"x\"", NULL};
    folder source = make_source(), out = folder_create();
    msa_quantize_args args = arguments(&source, &out);
    msa_quantize_info info = {0};
    EXPECT_FAIL(MSA_EINVAL, "struct_size = 0", msa_quantize(&args, NULL, NULL, &info));
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        args.keep = &names[i];
        args.n_keep = 1;
        EXPECT_FAIL(MSA_EINVAL, "must name a matrix of the model", quantize(&args));
    }
    args.keep = NULL;
    EXPECT_FAIL(MSA_EINVAL, "n_keep = 1, must be the length of keep", quantize(&args));
    args.n_keep = 0;
    args.embedding = 2;
    EXPECT_FAIL(MSA_EINVAL, "embedding = 2, must be 0 or 1", quantize(&args));
    args.out_dir = NULL;
    EXPECT_FAIL(MSA_EINVAL, "out_dir = NULL", quantize(&args));
    assert_int_equal(folder_count(&out), 0);
    folder_remove(&source);
    folder_remove(&out);
}

/* ---- the reader of an MXFP8 embedding ------------------------------------------------------ */

static msa_status open_model(const folder *f)
{
    msa_context *ctx;
    msa_context_args context_args;
    msa_model *model = NULL;
    msa_context_args_init(&context_args);
    EXPECT_OK(msa_context_create(&ctx, &context_args));
    msa_status status = msa_model_open(&model, ctx, f->dir);
    msa_model_close(model);
    msa_context_destroy(ctx);
    return status;
}

#define EMBEDDING "language_model.model.embed_tokens.weight"

static void test_broken_embeddings(void **state)
{
    (void)state;
    folder source = make_source(), out = folder_create();
    msa_quantize_args args = arguments(&source, &out);
    args.embedding = 1;
    EXPECT_OK(quantize(&args));
    EXPECT_OK(open_model(&out));
    tensor_set set = tensors_read(out.dir);
    unsigned char *code = tensors_find(&set, EMBEDDING)->data + 77, old = *code;
    *code = 0xff;
    tensors_write(&set, &out, 1);
    EXPECT_FAIL(MSA_EFORMAT, EMBEDDING ": element 77 is not finite", open_model(&out));
    *code = old;
    tensors_find(&set, EMBEDDING "_scale_inv")->data[1] = 255;
    tensors_write(&set, &out, 1);
    EXPECT_FAIL(MSA_EFORMAT, "element 32 is not finite", open_model(&out));
    tensors_find(&set, EMBEDDING "_scale_inv")->shape[1] = 1;
    tensors_find(&set, EMBEDDING "_scale_inv")->bytes /= 2;
    tensors_write(&set, &out, 1);
    EXPECT_FAIL(MSA_EFORMAT, EMBEDDING "_scale_inv: shape [320, 1], must be [320, 2]",
                open_model(&out));
    tensors_drop(&set, EMBEDDING "_scale_inv");
    tensors_write(&set, &out, 1);
    EXPECT_FAIL(MSA_EFORMAT, "is missing (scales of an MXFP8 weight)", open_model(&out));
    tensors_free(&set);
    change_config(&out, "\"ignored_layers\": [", "\"ignored_layers\": [\"embed_tokens\", ");
    EXPECT_FAIL(MSA_EFORMAT, "dtype fp8_e4m3, must be f32, bf16 or f16", open_model(&out));
    folder_remove(&source);
    folder_remove(&out);
}

/* ---- every allocation fails once ----------------------------------------------------------- */

static void empty(const folder *f)
{
    DIR *dir = opendir(f->dir);
    const struct dirent *entry;
    assert_non_null(dir);
    while ((entry = readdir(dir))) {
        if (entry->d_name[0] != '.') assert_int_equal(unlink(folder_path(f, entry->d_name)), 0);
    }
    closedir(dir);
}

static void test_oom_quantize(void **state)
{
    (void)state;
    folder source = folder_create(), out = folder_create();
    msa__preset one_layer = preset;
    one_layer.n_layers = 1;
    EXPECT_OK(msa__preset_make(source.dir, &one_layer, 5, NULL, NULL));
    msa_quantize_args args = arguments(&source, &out);
    args.embedding = 1;
    for (int64_t n = 1;; n++) {
        failing_malloc_begin(n);
        msa_status status = quantize(&args);
        if (!failing_malloc_end()) {
            EXPECT_OK(status);
            assert_true(n > 40);
            break;
        }
        assert_int_equal(status, MSA_ENOMEM);
        assert_non_null(strstr(msa_last_error(), "no memory"));
        empty(&out);
    }
    folder_remove(&source);
    folder_remove(&out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_folder),
        cmocka_unit_test(test_modules_that_stay),
        cmocka_unit_test(test_logits),
        cmocka_unit_test(test_sources_that_are_refused),
        cmocka_unit_test(test_arguments_that_are_refused),
        cmocka_unit_test(test_broken_embeddings),
        cmocka_unit_test(test_oom_quantize),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
