/* See tensors.h. */
#include "model/tensors.h"

#include "harness/cmocka_all.h"

#include <stdio.h>
#include <stdlib.h>

static size_t tensor_bytes(msa_dtype dtype, int32_t n_dims, const int64_t *shape)
{
    size_t bytes = msa_dtype_bytes(dtype);
    for (int32_t i = 0; i < n_dims; i++) bytes *= (size_t)shape[i];
    return bytes;
}

named_tensor *tensors_add(tensor_set *set, const char *name, msa_dtype dtype, int32_t n_dims,
                          const int64_t *shape)
{
    if (set->n == set->capacity) {
        set->capacity = set->capacity ? 2 * set->capacity : 64;
        set->items = realloc(set->items, (size_t)set->capacity * sizeof(*set->items));
        assert_non_null(set->items);
    }
    named_tensor *t = &set->items[set->n++];
    memset(t, 0, sizeof(*t));
    snprintf(t->name, sizeof(t->name), "%s", name);
    t->dtype = dtype;
    t->n_dims = n_dims;
    for (int32_t i = 0; i < n_dims; i++) t->shape[i] = shape[i];
    t->bytes = tensor_bytes(dtype, n_dims, shape);
    t->data = calloc(1, t->bytes ? t->bytes : 1);
    assert_non_null(t->data);
    return t;
}

tensor_set tensors_read(const char *dir)
{
    char path[512];
    msa_safetensors *file;
    tensor_set set = {0};
    snprintf(path, sizeof(path), "%s/model.safetensors", dir);
    EXPECT_OK(msa_safetensors_open(&file, path));
    for (int64_t i = 0; i < msa_safetensors_count(file); i++) {
        msa_tensor t;
        EXPECT_OK(msa_safetensors_get(file, i, &t));
        named_tensor *copy =
            tensors_add(&set, msa_safetensors_name(file, i), t.dtype, t.n_dims, t.shape);
        if (copy->bytes) memcpy(copy->data, t.data, copy->bytes);
    }
    msa_safetensors_close(file);
    return set;
}

void tensors_free(tensor_set *set)
{
    for (int64_t i = 0; i < set->n; i++) free(set->items[i].data);
    free(set->items);
    memset(set, 0, sizeof(*set));
}

static named_tensor *find(const tensor_set *set, const char *name)
{
    for (int64_t i = 0; i < set->n; i++) {
        if (!strcmp(set->items[i].name, name)) return &set->items[i];
    }
    return NULL;
}

named_tensor *tensors_find(const tensor_set *set, const char *name)
{
    named_tensor *t = find(set, name);
    if (!t) fail_msg("the test's checkpoint has no %s", name);
    return t;
}

void tensors_drop(tensor_set *set, const char *name)
{
    named_tensor *t = tensors_find(set, name);
    free(t->data);
    memmove(t, t + 1, (size_t)(set->items + set->n - t - 1) * sizeof(*t));
    set->n--;
}

/* ---- writing
 * -------------------------------------------------------------------------------------- */

static void write_file(const tensor_set *set, const char *path, int64_t first, int64_t n)
{
    msa_safetensors_writer *writer;
    int64_t index;
    EXPECT_OK(msa_safetensors_writer_create(&writer, path));
    for (int64_t i = 0; i < n; i++) {
        const named_tensor *t = &set->items[first + i];
        EXPECT_OK(
            msa_safetensors_writer_declare(writer, t->name, t->dtype, t->n_dims, t->shape, &index));
        assert_int_equal(index, i);
    }
    for (int64_t i = n - 1; i >= 0; i--) {
        const named_tensor *t = &set->items[first + i];
        EXPECT_OK(msa_safetensors_writer_write(writer, i, 0, t->data, t->bytes));
    }
    EXPECT_OK(msa_safetensors_writer_finish(writer));
    msa_safetensors_writer_destroy(writer);
}

void tensors_write(const tensor_set *set, const folder *f, int32_t n_shards)
{
    if (n_shards == 1) {
        write_file(set, folder_path(f, "model.safetensors"), 0, set->n);
        return;
    }
    size_t room = (size_t)set->n * 256 + 256, used = 0;
    char *index = malloc(room);
    assert_non_null(index);
    used += (size_t)snprintf(index, room, "{\"metadata\":{\"total_size\":1},\"weight_map\":{");
    for (int32_t s = 0; s < n_shards; s++) {
        char name[64];
        int64_t first = set->n * s / n_shards, last = set->n * (s + 1) / n_shards;
        snprintf(name, sizeof(name), "model-%05d-of-%05d.safetensors", s + 1, n_shards);
        write_file(set, folder_path(f, name), first, last - first);
        for (int64_t i = first; i < last; i++) {
            used += (size_t)snprintf(index + used, room - used, "%s\"%s\":\"%s\"", i ? "," : "",
                                     set->items[i].name, name);
        }
    }
    used += (size_t)snprintf(index + used, room - used, "}}");
    folder_write(f, "model.safetensors.index.json", index, used);
    free(index);
}

/* ---- the other naming scheme
 * ------------------------------------------------------------------------ */

void replace_in_name(char *name, const char *from, const char *to)
{
    char *at = strstr(name, from), tail[160];
    if (!at) return;
    snprintf(tail, sizeof(tail), "%s", at + strlen(from));
    snprintf(at, (size_t)(160 - (at - name)), "%s%s", to, tail);
}

static void rename_tensor(char *name, const char *prefix)
{
    replace_in_name(name, "language_model.lm_head", "lm_head");
    replace_in_name(name, "language_model.model.", prefix);
    replace_in_name(name, ".block_sparse_moe.", ".mlp.");
    replace_in_name(name, ".e_score_correction_bias", ".gate.e_score_correction_bias");
    replace_in_name(name, ".index_q_", ".indexer.q_");
    replace_in_name(name, ".index_k_", ".indexer.k_");
}

/* "…experts.3.w1.weight" with another expert and matrix. */
static const named_tensor *expert_tensor(const tensor_set *set, const char *first_name, int32_t e,
                                         const char *matrix)
{
    char name[160], part[16];
    snprintf(name, sizeof(name), "%s", first_name);
    snprintf(part, sizeof(part), ".%d.%s.", e, matrix);
    replace_in_name(name, ".0.w1.", part);
    return find(set, name);
}

/* Stack the given matrices of every expert: [E, sum of rows, columns]. */
static void stack_experts(const tensor_set *set, const named_tensor *first,
                          const char *const *which, int32_t n_which, const char *fused,
                          const char *prefix, tensor_set *out)
{
    int32_t n_experts = 0;
    char name[160];
    const named_tensor *model = expert_tensor(set, first->name, 0, which[0]);
    while (expert_tensor(set, first->name, n_experts, which[0])) n_experts++;
    int64_t shape[3] = {n_experts, n_which * model->shape[0], model->shape[1]};
    snprintf(name, sizeof(name), "%s", first->name);
    replace_in_name(name, ".0.w1.weight", fused);
    rename_tensor(name, prefix);
    named_tensor *t = tensors_add(out, name, model->dtype, 3, shape);
    unsigned char *at = t->data;
    for (int32_t e = 0; e < n_experts; e++) {
        for (int32_t i = 0; i < n_which; i++, at += model->bytes) {
            memcpy(at, expert_tensor(set, first->name, e, which[i])->data, model->bytes);
        }
    }
}

static void fuse_gate_up(const tensor_set *set, const named_tensor *gate, const char *prefix,
                         tensor_set *out)
{
    char name[160];
    snprintf(name, sizeof(name), "%s", gate->name);
    replace_in_name(name, ".gate_proj.", ".up_proj.");
    const named_tensor *up = tensors_find(set, name);
    int64_t shape[2] = {2 * gate->shape[0], gate->shape[1]};
    replace_in_name(name, ".up_proj.", ".gate_up_proj.");
    rename_tensor(name, prefix);
    named_tensor *t = tensors_add(out, name, gate->dtype, 2, shape);
    memcpy(t->data, gate->data, gate->bytes);
    memcpy(t->data + gate->bytes, up->data, up->bytes);
}

tensor_set tensors_to_transformers(const tensor_set *released, const char *prefix)
{
    static const char *const gate_up[] = {"w1", "w3"}, *const down[] = {"w2"};
    tensor_set out = {0};
    for (int64_t i = 0; i < released->n; i++) {
        const named_tensor *t = &released->items[i];
        if (strstr(t->name, ".experts.")) {
            if (!strstr(t->name, ".experts.0.w1.")) continue;
            stack_experts(released, t, gate_up, 2, ".gate_up_proj", prefix, &out);
            stack_experts(released, t, down, 1, ".down_proj", prefix, &out);
        } else if (strstr(t->name, ".gate_proj.")) {
            fuse_gate_up(released, t, prefix, &out);
        } else if (!strstr(t->name, ".up_proj.")) {
            char name[160];
            snprintf(name, sizeof(name), "%s", t->name);
            rename_tensor(name, prefix);
            named_tensor *copy = tensors_add(&out, name, t->dtype, t->n_dims, t->shape);
            memcpy(copy->data, t->data, t->bytes);
        }
    }
    return out;
}
