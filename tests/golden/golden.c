/* See golden.h. */
#include "golden/golden.h"

#include "harness/cmocka_all.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

/* Small goldens are in the repository, the rest in a folder of golden data beside it. */
static int find_folder(golden *g, const char *name)
{
    static const char *const roots[] = {"tests/golden/data/model", "../shared/golden/model"};
    const char *source = getenv("MSA_SOURCE_DIR");
    char path[1100];
    for (int i = 0; i < 2; i++) {
        snprintf(g->dir, sizeof(g->dir), "%s/%s/%s", source ? source : ".", roots[i], name);
        snprintf(path, sizeof(path), "%s/golden.safetensors", g->dir);
        if (access(path, R_OK) == 0) return 1;
    }
    return 0;
}

/* A tensor of the file; 0 when it has none of this name. */
static int find_tensor(const golden *g, const char *name, msa_tensor *tensor)
{
    int64_t i = msa_safetensors_find(g->file, name);
    if (i < 0) return 0;
    EXPECT_OK(msa_safetensors_get(g->file, i, tensor));
    return 1;
}

int golden_open(golden *g, const char *name)
{
    msa_tensor t;
    char path[1100];
    memset(g, 0, sizeof(*g));
    if (!find_folder(g, name)) {
        printf("SKIP %s: no %s\n", name, g->dir);
        return 0;
    }
    snprintf(path, sizeof(path), "%s/golden.safetensors", g->dir);
    EXPECT_OK(msa_safetensors_open(&g->file, path));
    assert_true(find_tensor(g, "input_ids", &t));
    g->tokens = t.data;
    g->n_tokens = t.shape[0];
    if (find_tensor(g, "generated", &t)) {
        g->generated = t.data;
        g->n_generated = t.shape[0];
    }
    assert_true(find_tensor(g, "logits", &t));
    g->logits = t.data;
    g->first_logits_row = g->n_tokens - t.shape[0];
    return 1;
}

void golden_close(golden *g)
{
    msa_safetensors_close(g->file);
}

/* ---- selections --------------------------------------------------------------------------- */

static int ascending_padding_last(const void *a, const void *b)
{
    uint32_t x = (uint32_t) * (const int32_t *)a, y = (uint32_t) * (const int32_t *)b;
    return x < y ? -1 : x > y; /* -1 becomes the largest */
}

static void expect_same_row(const golden *g, const record *r, int32_t layer, int64_t token,
                            int32_t head, const msa_tensor *expected)
{
    int32_t sorted[64];
    int32_t k = r->topk;
    const int32_t *theirs = (const int32_t *)expected->data + (head * g->n_tokens + token) * k;
    const int32_t *ours = r->blocks[layer] + (token * r->n_kv_heads + head) * k;
    memcpy(sorted, theirs, (size_t)k * sizeof(*sorted));
    qsort(sorted, (size_t)k, sizeof(*sorted), ascending_padding_last);
    for (int32_t i = 0; i < k; i++) {
        if (ours[i] == sorted[i]) continue;
        fail_msg("%s: layer %d, token %lld, group %d: block %d, golden has %d", g->dir, layer,
                 (long long)token, head, ours[i], sorted[i]);
    }
}

void expect_same_blocks(const golden *g, const record *r)
{
    int compared = 0;
    assert_true(r->topk <= 64);
    for (int32_t layer = 0; layer < r->n_layers; layer++) {
        char name[64];
        msa_tensor expected;
        snprintf(name, sizeof(name), "layers.%d.selected_blocks", layer);
        if (!find_tensor(g, name, &expected)) continue;
        assert_int_equal(expected.shape[0], r->n_kv_heads);
        assert_int_equal(expected.shape[1], g->n_tokens);
        assert_int_equal(expected.shape[2], r->topk);
        for (int64_t token = 0; token < r->n_tokens; token++) {
            for (int32_t head = 0; head < r->n_kv_heads; head++) {
                expect_same_row(g, r, layer, token, head, &expected);
            }
        }
        compared++;
    }
    assert_int_equal(compared, r->n_sparse_layers);
}

/* ---- numbers ------------------------------------------------------------------------------ */

static void expect_close(const golden *g, const char *what, const float *ours, const float *theirs,
                         int64_t n, double tolerance)
{
    double largest = largest_value(theirs, n), difference = largest_difference(ours, theirs, n);
    if (difference <= tolerance * largest) return;
    fail_msg("%s: %s differs by %g, allowed %g of %g", g->dir, what, difference, tolerance,
             largest);
}

void expect_near(const golden *g, const record *r, double tolerance)
{
    for (int32_t layer = 0; layer < r->n_layers; layer++) {
        char name[64];
        msa_tensor expected;
        snprintf(name, sizeof(name), "layers.%d.output", layer);
        if (!find_tensor(g, name, &expected)) continue;
        expect_close(g, name, r->outputs[layer], expected.data, r->n_tokens * r->hidden, tolerance);
    }
    expect_close(g, "logits", r->logits + g->first_logits_row * r->vocab, g->logits,
                 (r->n_tokens - g->first_logits_row) * r->vocab, tolerance);
}

double logits_error(const golden *g, const record *r)
{
    return rms_difference(r->logits + g->first_logits_row * r->vocab, g->logits,
                          (r->n_tokens - g->first_logits_row) * r->vocab);
}
