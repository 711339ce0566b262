/* Training on a device: the same bits as on the processor it really runs on (fake_device.h), with
 * every byte where the device can reach it and none of them touched by the host. */
#include "engine/fake_device.h"
#include "train_fixture.h"

#include "harness/cmocka_all.h"

#include "msa/memory.h"
#include "train/balance.h"
#include "train/optimizer.h"
#include "train/recall.h"

#include <stdlib.h>

#define DEVICE_BYTES ((size_t)64 << 20)

/* What two steps leave, and one look at recall. */
typedef struct outcome {
    float *masters;
    int64_t n;
    msa_recall recall[TINY_LAYERS];
} outcome;

static void make_step(tiny *t, msa__optimizer *optimizer, msa__balance *balance)
{
    msa__walk_mode mode = {.phase = MSA__PHASE_SPARSE,
                           .measure_index = 1,
                           .loss_weight = 1.0f / TINY_TARGETS,
                           .index_weight = 1.0f / (2 * TINY_TOKENS)};
    msa__update update = {.backbone = 1, .index = 1, .lr = 0.01, .index_lr = 0.01};
    double load;
    tiny_gradients(t, &mode);
    if (t->config.n_experts) EXPECT_OK(msa__balance_count(balance, &t->walk));
    EXPECT_OK(msa__optimizer_step(optimizer, &update));
    assert_false(update.skipped);
    if (!t->config.n_experts) return;
    EXPECT_OK(msa__balance_update(balance, 0.01, &load));
    assert_true(load >= 1);
}

static outcome train(const char *config, int32_t on_device, msa_dtype dtype, msa__keep keep)
{
    static const msa__adamw settings = {.beta1 = 0.9, .beta2 = 0.99, .eps = 1e-8, .clip = 1};
    tiny t;
    outcome result;
    msa__optimizer optimizer;
    msa__balance balance;
    msa__recall_probe probe;
    tiny_open(&t, config, "cpu", 2);
    if (on_device) fake_device_open(t.ctx, DEVICE_BYTES);
    tiny_fill(&t, dtype, keep);
    EXPECT_OK(msa__optimizer_create(&optimizer, &t.parameters, &settings));
    EXPECT_OK(msa__balance_create(&balance, &t.parameters, TINY_TOKENS));
    EXPECT_OK(msa__recall_create(&probe, t.ctx, &t.config, dtype, TINY_TOKENS));
    for (int i = 0; i < 2; i++) make_step(&t, &optimizer, &balance);
    t.walk.mode = (msa__walk_mode){.phase = MSA__PHASE_SPARSE};
    EXPECT_OK(msa__recall_walk(&probe, &t.walk, tiny_batch()));
    msa__recall_finish(&probe, result.recall);
    result.n = t.parameters.n;
    result.masters = tiny_copy(&t, t.parameters.masters, result.n);
    msa__recall_destroy(&probe);
    msa__balance_free(&balance);
    msa__optimizer_free(&optimizer);
    tiny_destroy(&t);
    if (on_device) {
        assert_true(fake_device()->n_operators > 100);
        assert_int_equal(fake_device()->n_live, 0);
    }
    return result;
}

static void expect_same_bits(const char *config, int64_t n_recall_rows)
{
    for (msa_dtype dtype = MSA_DTYPE_F32; dtype <= MSA_DTYPE_BF16; dtype++) {
        for (int keep = MSA__KEEP_RESIDUAL; keep <= MSA__KEEP_ALL; keep++) {
            outcome host = train(config, 0, dtype, (msa__keep)keep);
            outcome device = train(config, 1, dtype, (msa__keep)keep);
            assert_int_equal(host.n, device.n);
            assert_memory_equal(host.masters, device.masters, (size_t)host.n * sizeof(float));
            assert_memory_equal(host.recall, device.recall, sizeof(host.recall));
            assert_int_equal(host.recall[1].n_rows, n_recall_rows);
            free(host.masters);
            free(device.masters);
        }
    }
}

static void test_same_bits_on_a_device(void **state)
{
    (void)state;
    expect_same_bits(tiny_config, 2 * ((50 - 32) + (36 - 32)));
    expect_same_bits(tiny_dsa_config, 2 * MSA__RECALL_QUERIES);
    expect_same_bits(tiny_moba_config, 2 * ((50 - 32) + (36 - 32)));
    expect_same_bits(tiny_window_config, -1); /* layer 1 is a sliding window */
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_same_bits_on_a_device)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
