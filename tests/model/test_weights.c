/* Weights by role: the golden models open with the shapes their configs ask for, and the same
 * weights come out of every layout of the same checkpoint. */
#define _POSIX_C_SOURCE 200809L
#include "harness/cmocka_all.h"
#include "model/folder.h"
#include "model/tensors.h"

#include "base/alloc.h"
#include "model/checkpoint.h"
#include "model/layout.h"
#include "model/weights.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

typedef struct opened {
    msa__config config;
    msa__weights weights;
} opened;

static opened *open_folder(const char *dir)
{
    opened *o = calloc(1, sizeof(*o));
    assert_non_null(o);
    EXPECT_OK(msa__config_read(&o->config, dir));
    EXPECT_OK(msa__weights_open(&o->weights, &o->config, dir, &msa__default_allocator));
    return o;
}

static void close_folder(opened *o)
{
    msa__weights_close(&o->weights);
    msa__config_free(&o->config);
    free(o);
}

/* ---- every role
 * ---------------------------------------------------------------------------------------- */

/* The view behind a role: a vector or router in v, a matrix in w. */
typedef struct role_view {
    msa_tensor w, scales;
} role_view;

static role_view view_role(const msa__layer_weights *layer, const msa__layer_role *role,
                           int32_t expert, int64_t columns)
{
    const char *base =
        role->per_expert ? (const char *)&layer->experts[expert] : (const char *)layer;
    role_view view;
    memset(&view, 0, sizeof(view));
    if (columns == 0 || role->kind == MSA__KIND_ROUTER) {
        view.w = *(const msa_tensor *)(const void *)(base + role->slot);
    } else {
        const msa_weight *weight = (const msa_weight *)(const void *)(base + role->slot);
        view.w = weight->w;
        view.scales = weight->scales;
    }
    return view;
}

typedef void (*role_visit)(const opened *a, const opened *b, const msa__layer_role *role,
                           const role_view *view_a, const role_view *view_b, int64_t rows,
                           int64_t columns);

static void visit_roles(const opened *a, const opened *b, role_visit visit)
{
    for (int32_t l = 0; l < a->config.n_layers; l++) {
        for (int32_t r = 0; r < msa__n_layer_roles; r++) {
            const msa__layer_role *role = &msa__layer_roles[r];
            int64_t rows, columns;
            msa__role_shape(&a->config, role, l, &rows, &columns);
            int32_t n = role->per_expert ? a->config.n_experts : 1;
            for (int32_t e = 0; e < n && rows > 0; e++) {
                role_view view_a = view_role(&a->weights.layers[l], role, e, columns);
                role_view view_b = view_role(&b->weights.layers[l], role, e, columns);
                visit(a, b, role, &view_a, &view_b, rows, columns);
            }
        }
    }
}

static void check_role_shape(const opened *a, const opened *b, const msa__layer_role *role,
                             const role_view *view, const role_view *same, int64_t rows,
                             int64_t columns)
{
    (void)b;
    (void)same;
    assert_non_null(view->w.data);
    assert_int_equal(view->w.n_dims, columns ? 2 : 1);
    assert_int_equal(view->w.shape[0], rows);
    if (columns) assert_int_equal(view->w.shape[1], columns);
    int32_t quantized = a->config.mxfp8 && role->kind == MSA__KIND_MATRIX;
    assert_int_equal(view->w.dtype == MSA_DTYPE_F8_E4M3, quantized);
    assert_int_equal(view->scales.data != NULL, quantized);
    if (quantized) assert_int_equal(view->scales.shape[1], columns / 32);
}

static void test_goldens_open(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        int64_t n_parameters;
    } models[] = {
        {"tiny-a", 345624}, {"mxfp8-a", 1147480}, {"tiny-m3shape", 1000908}, {"tiny-b", 5569792}};
    for (size_t i = 0; i < 4; i++) {
        const char *dir = golden_model_dir(models[i].name);
        if (!dir) {
            printf("SKIP %s: only beside the repository\n", models[i].name);
            continue;
        }
        opened *o = open_folder(dir);
        msa__counts counts;
        int64_t bytes, active_bytes;
        visit_roles(o, o, check_role_shape);
        assert_int_equal(o->weights.embedding.shape[0], o->config.vocab_size);
        assert_int_equal(o->weights.head.w.shape[1], o->config.hidden_size);
        assert_int_equal(o->weights.final_norm.shape[0], o->config.hidden_size);
        msa__layout_count(&o->config, &counts);
        msa__weights_count(&o->weights, &o->config, &bytes, &active_bytes);
        assert_int_equal(counts.n_parameters, models[i].n_parameters);
        assert_int_equal(counts.weight_bytes, bytes); /* released dtypes */
        assert_int_equal(counts.active_weight_bytes, active_bytes);
        close_folder(o);
    }
}

/* ---- the same weights from other layouts
 * ----------------------------------------------------------------- */

static void expect_same_bytes(const msa_tensor *a, const msa_tensor *b)
{
    assert_int_equal(a->data != NULL, b->data != NULL);
    if (!a->data) return;
    assert_int_equal(a->dtype, b->dtype);
    assert_int_equal(a->n_dims, b->n_dims);
    int64_t n = 1;
    for (int32_t i = 0; i < a->n_dims; i++) {
        assert_int_equal(a->shape[i], b->shape[i]);
        assert_int_equal(b->stride[i], a->stride[i]);
        n *= a->shape[i];
    }
    assert_memory_equal(a->data, b->data, (size_t)n * msa_dtype_bytes(a->dtype));
}

static void check_role_same(const opened *a, const opened *b, const msa__layer_role *role,
                            const role_view *view_a, const role_view *view_b, int64_t rows,
                            int64_t columns)
{
    (void)a;
    (void)b;
    (void)role;
    (void)rows;
    (void)columns;
    expect_same_bytes(&view_a->w, &view_b->w);
    expect_same_bytes(&view_a->scales, &view_b->scales);
}

static void expect_same_weights(const char *dir_a, const char *dir_b)
{
    opened *a = open_folder(dir_a), *b = open_folder(dir_b);
    assert_int_equal(a->config.n_layers, b->config.n_layers);
    visit_roles(a, b, check_role_same);
    expect_same_bytes(&a->weights.embedding, &b->weights.embedding);
    expect_same_bytes(&a->weights.final_norm, &b->weights.final_norm);
    expect_same_bytes(&a->weights.head.w, &b->weights.head.w);
    close_folder(a);
    close_folder(b);
}

/* Layer kinds as a JSON list. */
static int print_kinds(char *text, size_t room, const msa__config *c, int moe, const char *off,
                       const char *on)
{
    int used = 0;
    for (int32_t i = 0; i < c->n_layers; i++) {
        int flag = moe ? c->layers[i].moe : c->layers[i].attention == MSA__ATTENTION_MSA;
        used +=
            snprintf(text + used, room - (size_t)used, "%s\"%s\"", i ? ", " : "", flag ? on : off);
    }
    return used;
}

/* config.json in the transformers layout, made from what the released one says. */
static void write_flattened_config(const folder *f, const msa__config *c, const char *architecture)
{
    char text[4096], attention[512], mlp[512];
    print_kinds(attention, sizeof(attention), c, 0, "full_attention", "minimax_m3_sparse");
    print_kinds(mlp, sizeof(mlp), c, 1, "dense", "sparse");
    int n = snprintf(
        text, sizeof(text),
        "{\"architectures\": [\"%s\"], \"hidden_size\": %d, \"num_hidden_layers\": %d, "
        "\"num_attention_heads\": %d, \"num_key_value_heads\": %d, \"head_dim\": %d, "
        "\"vocab_size\": %d, \"max_position_embeddings\": 8192, \"rms_norm_eps\": 1e-06, "
        "\"rope_parameters\": {\"rope_type\": \"default\", \"rope_theta\": 5000000, "
        "\"partial_rotary_factor\": 0.5}, \"rotary_dim\": 64, \"hidden_act\": \"silu\", "
        "\"swiglu_alpha\": 1.702, \"swiglu_limit\": 7.0, \"intermediate_size\": %d, "
        "\"shared_intermediate_size\": %d, \"dense_intermediate_size\": %d, "
        "\"num_local_experts\": %d, \"num_experts_per_tok\": %d, \"routed_scaling_factor\": 2.0, "
        "\"index_n_heads\": %d, \"index_head_dim\": %d, \"index_block_size\": %d, "
        "\"index_topk_blocks\": %d, \"index_local_blocks\": 1, \"layer_types\": [%s], "
        "\"mlp_layer_types\": [%s], \"quantization_config\": %s}",
        architecture, c->hidden_size, c->n_layers, c->n_q_heads, c->n_kv_heads, c->head_dim,
        c->vocab_size, c->expert_width, c->shared_width, c->dense_width, c->n_experts,
        c->n_experts_per_token, c->n_kv_heads, c->index_dim, c->block_size, c->topk_blocks,
        attention, mlp,
        c->mxfp8 ? "{\"quant_method\": \"mxfp8\", \"weight_block_size\": [1, 32], "
                   "\"ignored_layers\": [\"lm_head\"]}"
                 : "null");
    assert_true(n < (int)sizeof(text));
    folder_write(f, "config.json", text, (size_t)n);
}

static void expect_transformers_variant(const char *name, const char *prefix,
                                        const char *architecture)
{
    folder f = folder_create();
    char dir[512];
    snprintf(dir, sizeof(dir), "%s", golden_model_dir(name));
    msa__config config;
    EXPECT_OK(msa__config_read(&config, dir));
    tensor_set released = tensors_read(dir);
    tensor_set renamed = tensors_to_transformers(&released, prefix);
    write_flattened_config(&f, &config, architecture);
    tensors_write(&renamed, &f, 1);
    expect_same_weights(dir, f.dir);
    tensors_free(&released);
    tensors_free(&renamed);
    msa__config_free(&config);
    folder_remove(&f);
}

static void test_transformers_names_give_the_same_weights(void **state)
{
    (void)state;
    expect_transformers_variant("tiny-a", "model.language_model.",
                                "MiniMaxM3SparseForConditionalGeneration");
    expect_transformers_variant("tiny-a", "model.", "MiniMaxM3VLForCausalLM");
    expect_transformers_variant("mxfp8-a", "model.language_model.",
                                "MiniMaxM3VLForConditionalGeneration");
}

/* Some exports move the MoE block without fusing it; the bias stands in mlp itself. */
static void test_unfused_mlp_names(void **state)
{
    (void)state;
    folder f = folder_create();
    char dir[512];
    snprintf(dir, sizeof(dir), "%s", golden_model_dir("tiny-a"));
    tensor_set set = tensors_read(dir);
    for (int64_t i = 0; i < set.n; i++) {
        replace_in_name(set.items[i].name, "block_sparse_moe.", "mlp.");
    }
    folder_copy(&f, dir, "config.json");
    tensors_write(&set, &f, 1);
    expect_same_weights(dir, f.dir);
    tensors_free(&set);
    folder_remove(&f);
}

static void test_shards_give_the_same_weights(void **state)
{
    (void)state;
    folder f = folder_create();
    char dir[512];
    snprintf(dir, sizeof(dir), "%s", golden_model_dir("mxfp8-a"));
    tensor_set set = tensors_read(dir);
    folder_copy(&f, dir, "config.json");
    tensors_write(&set, &f, 5);
    expect_same_weights(dir, f.dir);
    tensors_free(&set);
    folder_remove(&f);
}

static void test_tied_embedding_is_the_head(void **state)
{
    (void)state;
    folder f = folder_create();
    size_t n;
    char dir[512], path[600];
    snprintf(dir, sizeof(dir), "%s", golden_model_dir("tiny-a"));
    snprintf(path, sizeof(path), "%s/config.json", dir);
    char *config = read_whole_file(path, &n);
    char *at = strstr(config, "\"tie_word_embeddings\": false");
    assert_non_null(at);
    memcpy(at, "\"tie_word_embeddings\":  true", 28);
    folder_write(&f, "config.json", config, n);
    free(config);
    tensor_set set = tensors_read(dir);
    tensors_drop(&set, "language_model.lm_head.weight");
    tensors_write(&set, &f, 1);
    opened *o = open_folder(f.dir);
    assert_ptr_equal(o->weights.head.w.data, o->weights.embedding.data);
    close_folder(o);
    tensors_free(&set);
    folder_remove(&f);
}

/* ---- M3 itself, without its values
 * ------------------------------------------------------------------------ */

typedef struct header_writer {
    char *text;
    size_t used, room;
    uint64_t offset;
} header_writer;

static msa_status add_header_entry(void *user, const msa__tensor_spec *spec)
{
    header_writer *h = user;
    int f32 = spec->kind == MSA__KIND_ROUTER || spec->kind == MSA__KIND_ROUTER_BIAS;
    uint64_t n = (uint64_t)spec->rows * (uint64_t)(spec->columns ? spec->columns : 1);
    uint64_t end = h->offset + n * (f32 ? 4 : 2);
    char shape[64];
    if (spec->columns) {
        snprintf(shape, sizeof(shape), "%lld,%lld", (long long)spec->rows,
                 (long long)spec->columns);
    } else {
        snprintf(shape, sizeof(shape), "%lld", (long long)spec->rows);
    }
    h->used +=
        (size_t)snprintf(h->text + h->used, h->room - h->used,
                         "%s\"%s\":{\"dtype\":\"%s\",\"shape\":[%s],\"data_offsets\":[%llu,%llu]}",
                         h->offset ? "," : "{", spec->name, f32 ? "F32" : "BF16", shape,
                         (unsigned long long)h->offset, (unsigned long long)end);
    h->offset = end;
    return MSA_OK;
}

/* A sparse file of 852 GB with the real names and shapes opens at once: nothing large is read. */
static void test_whole_m3_opens_lazily(void **state)
{
    (void)state;
    folder f = folder_create();
    char *config_text = read_test_data("m3_config.json");
    msa__config config;
    folder_write(&f, "config.json", config_text, strlen(config_text));
    free(config_text);
    EXPECT_OK(msa__config_read(&config, f.dir));
    header_writer h = {malloc(8 << 20), 0, 8 << 20, 0};
    assert_non_null(h.text);
    EXPECT_OK(msa__layout_visit(&config, add_header_entry, &h));
    h.text[h.used++] = '}';
    while (h.used % 64 != 56) h.text[h.used++] = ' ';
    uint64_t header_bytes = h.used;
    int fd = open(folder_path(&f, "model.safetensors"), O_RDWR | O_CREAT, 0600);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, &header_bytes, 8), 8);
    assert_int_equal(write(fd, h.text, h.used), h.used);
    int too_large = ftruncate(fd, (off_t)(8 + h.used + h.offset));
    close(fd);
    free(h.text);
    if (too_large) {
        printf("SKIP: the file system of /tmp does not take a file of 852 GB\n");
    } else {
        opened *o = open_folder(f.dir);
        int64_t bytes, active_bytes;
        visit_roles(o, o, check_role_shape);
        msa__weights_count(&o->weights, &o->config, &bytes, &active_bytes);
        assert_int_equal(bytes, INT64_C(852438813696));
        close_folder(o);
    }
    msa__config_free(&config);
    folder_remove(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_goldens_open),
        cmocka_unit_test(test_transformers_names_give_the_same_weights),
        cmocka_unit_test(test_unfused_mlp_names),
        cmocka_unit_test(test_shards_give_the_same_weights),
        cmocka_unit_test(test_tied_embedding_is_the_head),
        cmocka_unit_test(test_whole_m3_opens_lazily),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
