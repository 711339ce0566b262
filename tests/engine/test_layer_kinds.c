/* Layer kinds are data: any mix of full or sparse attention with dense or MoE layers runs, M3.1's
 * (every layer sparse) among them. The reference backend decides what is right. */
#include "engine/fixture.h"
#include "harness/cmocka_all.h"
#include "model/make_preset.h"

#include <stdio.h>
#include <sys/stat.h>

typedef struct {
    const char *name;
    int32_t n_full_layers, n_dense_layers, mxfp8;
} kind;

static const kind kinds[] = {
    {"every layer sparse with experts", 0, 0, 0},
    {"every layer sparse, two of them with a dense MLP", 0, 2, 0},
    {"every layer full, with experts", 3, 0, 0},
    {"every layer full with a dense MLP", 3, 3, 0},
    {"two full layers, one dense MLP, MXFP8", 2, 1, 1},
};

static void make(const kind *k, const char *dir)
{
    const msa__preset preset = {.name = "kind",
                                .description = "",
                                .hidden_size = 64,
                                .n_layers = 3,
                                .n_full_layers = k->n_full_layers,
                                .n_dense_layers = k->n_dense_layers,
                                .n_q_heads = 4,
                                .n_kv_heads = 2,
                                .head_dim = 32,
                                .block_size = 16,
                                .topk_blocks = 3,
                                .n_experts = 6,
                                .n_experts_per_token = 3,
                                .expert_width = 32,
                                .shared_width = 64,
                                .dense_width = 96,
                                .max_positions = 1024,
                                .mxfp8 = k->mxfp8};
    EXPECT_OK(msa__preset_make(dir, &preset, 5, NULL, NULL));
}

static record *run(const char *dir, const char *backend, int32_t chunk, int64_t decode_from)
{
    subject s;
    subject_open(&s, dir, backend, NULL, 2);
    record *r = run_tokens(&s, fixture_tokens(0), MODEL_TOKENS, MSA_DTYPE_F32, MSA_DTYPE_F32, chunk,
                           decode_from, MSA_ATTENTION_SPARSE);
    subject_close(&s);
    return r;
}

static void expect_equal_runs(const kind *k, const record *expected, const record *r)
{
    size_t n_ids = (size_t)(r->n_tokens * r->n_kv_heads * r->topk);
    for (int32_t layer = 0; layer < r->n_layers; layer++) {
        if (memcmp(expected->blocks[layer], r->blocks[layer], n_ids * sizeof(int32_t))) {
            fail_msg("%s: layer %d selects other blocks", k->name, layer);
        }
        int selects = r->blocks[layer][0] >= 0;
        assert_int_equal(selects, layer >= k->n_full_layers);
    }
    double largest = largest_value(expected->logits, r->n_tokens * r->vocab);
    double difference = largest_difference(expected->logits, r->logits, r->n_tokens * r->vocab);
    if (!(difference <= 1e-5 * largest)) {
        fail_msg("%s: logits differ by %g of %g", k->name, difference, largest);
    }
}

static void test_every_mix_of_layer_kinds(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
        char name[32], dir[128];
        snprintf(name, sizeof(name), "kind-%zu", i);
        snprintf(dir, sizeof(dir), "%s", temporary_folder(name));
        make(&kinds[i], dir);
        const char *backend = test_backend() ? test_backend() : "cpu";
        record *expected = run(dir, "ref", MODEL_TOKENS, MODEL_TOKENS);
        record *whole = run(dir, backend, MODEL_TOKENS, MODEL_TOKENS);
        record *pieces = run(dir, backend, 13, 120);
        expect_equal_runs(&kinds[i], expected, whole);
        expect_equal_runs(&kinds[i], expected, pieces);
        record_free(expected);
        record_free(whole);
        record_free(pieces);
    }
}

static int remove_files(void **state)
{
    (void)state;
    remove_temporary_files();
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_mix_of_layer_kinds),
    };
    return cmocka_run_group_tests(tests, NULL, remove_files);
}
