/* Parts of training that need no model: schedules, one row of recall, eight-bit index keys,
 * counted operations. */
#include "train_fixture.h"

#include "harness/cmocka_all.h"

#include "base/rng.h"
#include "train/flops.h"
#include "train/recall_row.h"
#include "train/scan8.h"
#include "train/train_config.h"

#include <math.h>
#include <stdlib.h>

static void expect_near(double found, double expected, double tolerance)
{
    if (!(fabs(found - expected) <= tolerance)) fail_msg("%.17g, not %.17g", found, expected);
}

/* ---- schedules ---------------------------------------------------------------------------- */

static void test_schedules(void **state)
{
    (void)state;
    msa__stage s = {.steps = 100, .warmup_steps = 10, .final_lr = 0.1, .decay_part = 0.2};
    for (int32_t kind = MSA__SCHEDULE_COSINE; kind <= MSA__SCHEDULE_CONSTANT; kind++) {
        s.schedule = kind;
        expect_near(msa__schedule_share(&s, 0), 0.1, 1e-12);
        expect_near(msa__schedule_share(&s, 9), 1, 1e-12);
        expect_near(msa__schedule_share(&s, 10), 1, 1e-12);
        for (int64_t i = 11; i < 100; i++) {
            assert_true(msa__schedule_share(&s, i) <= msa__schedule_share(&s, i - 1));
        }
    }
    s.schedule = MSA__SCHEDULE_COSINE;
    expect_near(msa__schedule_share(&s, 55), 0.1 + 0.9 * 0.5, 1e-12);
    expect_near(msa__schedule_share(&s, 100), 0.1, 1e-12);
    s.schedule = MSA__SCHEDULE_WSD;
    expect_near(msa__schedule_share(&s, 80), 1, 1e-12);
    expect_near(msa__schedule_share(&s, 90), 0.1 + 0.9 * 0.5, 1e-12);
    s.schedule = MSA__SCHEDULE_CONSTANT;
    expect_near(msa__schedule_share(&s, 99), 1, 0);
    s = (msa__stage){.steps = 1, .schedule = MSA__SCHEDULE_WSD, .decay_part = 1};
    expect_near(msa__schedule_share(&s, 0), 1, 0);
}

/* ---- recall ------------------------------------------------------------------------------- */

#define BLOCKS 9
#define TOPK   3

static const msa__recall_choice choice = {.topk = TOPK, .n_local = 1};

/* The largest mass that K blocks can hold, by trying all of them; forced: with the last one. */
static double best_mass(const float *mass, int32_t forced)
{
    double best = -1;
    for (int32_t a = 0; a < BLOCKS; a++) {
        for (int32_t b = a + 1; b < BLOCKS; b++) {
            for (int32_t c = b + 1; c < BLOCKS; c++) {
                double sum = (double)mass[a] + (double)mass[b] + (double)mass[c];
                if ((!forced || c == BLOCKS - 1) && sum > best) best = sum;
            }
        }
    }
    return best;
}

static void test_recall_row(void **state)
{
    (void)state;
    for (uint64_t row = 0; row < 200; row++) {
        float mass[BLOCKS];
        int32_t blocks[TOPK] = {(int32_t)(row % 4), (int32_t)(4 + row % 3), BLOCKS - 1};
        int32_t best[MSA__RECALL_ROW_IDS];
        double captured = 0;
        msa_recall r = {0};
        for (uint64_t i = 0; i < BLOCKS; i++) {
            uint32_t words[4];
            msa__philox(1, i, row, words);
            mass[i] = msa__uniform(words[0]);
        }
        for (int i = 0; i < TOPK; i++) captured += (double)mass[blocks[i]];
        msa__recall_add_row(&r, &choice, mass, BLOCKS, blocks, best);
        assert_int_equal(r.n_rows, 1);
        expect_near(r.captured_mass, captured, 1e-12);
        expect_near(r.oracle_ratio, captured / best_mass(mass, 0), 1e-12);
        expect_near(r.oracle_ratio_forced, captured / best_mass(mass, 1), 1e-12);
        assert_true(r.score_recall <= r.oracle_ratio + 1e-12);
        assert_true(r.block_recall_forced >= 1.0 / TOPK - 1e-12); /* the local block */
    }
}

/* The best blocks themselves recall everything. */
static void test_recall_of_the_best(void **state)
{
    (void)state;
    static const float mass[BLOCKS] = {0.1f, 0.5f, 0, 0, 0.2f, 0, 0, 0, 0.2f};
    static const int32_t blocks[TOPK] = {1, 4, 8}, poor[TOPK] = {2, 8, -1};
    int32_t best[MSA__RECALL_ROW_IDS];
    msa_recall sums = {0}, mean;
    msa__recall_add_row(&sums, &choice, mass, BLOCKS, blocks, best);
    msa__recall_mean(&sums, &mean);
    expect_near(mean.block_recall, 1, 0);
    expect_near(mean.oracle_ratio, 1, 1e-12);
    msa__recall_add_row(&sums, &choice, mass, BLOCKS, poor, best);
    msa__recall_mean(&sums, &mean);
    assert_int_equal(mean.n_rows, 2);
    expect_near(mean.block_recall, (1 + 1.0 / 3) / 2, 1e-12);
    expect_near(mean.captured_mass, (0.9 + 0.2) / 2, 1e-7);
    sums = (msa_recall){0};
    msa__recall_mean(&sums, &mean);
    assert_int_equal(mean.n_rows, 0);
    expect_near(mean.oracle_ratio, 1, 0);
}

/* ---- operations --------------------------------------------------------------------------- */

static int32_t is_moba(const msa__config *c, int32_t layer)
{
    return msa__attention_is_moba(c->layers[layer].attention);
}

static int32_t is_dsa(const msa__config *c, int32_t layer)
{
    return c->layers[layer].attention == MSA__ATTENTION_DSA;
}

/* Pairs that the rows of a layer see, counted one by one. */
static double count_pairs(const msa__config *c, int32_t layer, int32_t sparse)
{
    const msa__walk_batch *batch = tiny_batch();
    double pairs = 0;
    for (int32_t s = 0; s < batch->n_seqs; s++) {
        for (int32_t i = 0; i < batch->cu_seqlens[s + 1] - batch->cu_seqlens[s]; i++) {
            int32_t kind = c->layers[layer].attention, local = i / c->block_size, kept = local + 1;
            if (sparse && kind == MSA__ATTENTION_MSA && kept > c->topk_blocks)
                kept = c->topk_blocks;
            if (kind == MSA__ATTENTION_WINDOW_CONTROL && kept > c->window_blocks) {
                kept = c->window_blocks;
            }
            if (is_moba(c, layer) && kept > c->moba_topk) kept = c->moba_topk; /* of one page */
            double seen = (kept - 1) * c->block_size + i % c->block_size + 1;
            if (kind == MSA__ATTENTION_SWA && i + 1 > c->window) seen = c->window;
            if (sparse && is_dsa(c, layer) && i + 1 > c->dsa_topk) seen = c->dsa_topk;
            pairs += seen;
        }
    }
    return pairs;
}

/* Blocks before their own that MoBA's rows weigh. */
static double count_gates(const msa__config *c)
{
    const msa__walk_batch *batch = tiny_batch();
    double gates = 0;
    for (int32_t i = 0; i < TINY_TOKENS; i++) gates += batch->positions[i] / c->block_size;
    return gates;
}

static void check_flops(const char *config, msa__phase phase, double matrices)
{
    tiny t;
    msa__walk_mode mode = {.phase = phase};
    tiny_create(&t, config, "cpu", 1, MSA_DTYPE_F32, MSA__KEEP_ALL);
    const msa__config *c = &t.config;
    double q = c->n_q_heads * c->head_dim;
    double expected = matrices * TINY_TOKENS;
    for (int32_t layer = 0; layer < c->n_layers; layer++) {
        if (c->layers[layer].attention == MSA__ATTENTION_LIGHTNING) {
            expected += 12 * q * c->head_dim * TINY_TOKENS;
            continue;
        }
        double pairs = count_pairs(c, layer, phase == MSA__PHASE_SPARSE);
        expected += 12 * q * pairs;
        if (is_moba(c, layer)) expected += 2 * q * count_gates(c);
        if (!msa__attention_has_index(c->layers[layer].attention)) continue;
        if (phase == MSA__PHASE_DENSE) continue;
        double index_q = (is_dsa(c, layer) ? c->dsa_heads : c->n_kv_heads) * c->index_dim;
        expected += 4 * index_q * pairs + 2 * index_q * count_pairs(c, layer, 0);
    }
    expect_near(msa__flops(&t.parameters, &mode, tiny_batch()), expected, 1e-6 * expected);
    tiny_destroy(&t);
}

static void test_operations(void **state)
{
    (void)state;
    /* q, k, v, o, and MLPs of width 64, or 2 of 4 experts, a shared one and the router */
    double attention = 48 * 64 * 2 + 48 * 32 * 2, dense = 3 * 48 * 64, head = 48 * 64;
    double lightning = 5 * 48 * 64; /* q, k, v, o, the gate */
    double experts = 3 * 3 * 48 * 32 + 4 * 48, index = 48 * 32 + 48 * 16;
    double m3 = 6 * (3 * attention + dense + 2 * experts + head);
    check_flops(tiny_config, MSA__PHASE_DENSE, m3);
    check_flops(tiny_config, MSA__PHASE_WARMUP, m3 + 4 * 2 * index);
    check_flops(tiny_config, MSA__PHASE_SPARSE, m3 + 4 * 2 * index);
    check_flops(tiny_window_config, MSA__PHASE_DENSE, 6 * (3 * attention + 3 * dense + head));
    check_flops(tiny_moba_config, MSA__PHASE_DENSE, 6 * (3 * attention + 3 * dense + head));
    index = 48 * 3 * 32 + 48 * 32 + 48 * 3; /* index queries, keys, head weights */
    check_flops(tiny_dsa_config, MSA__PHASE_WARMUP,
                6 * (3 * attention + 3 * dense + head) + 4 * 2 * index);
    check_flops(tiny_dsa_config, MSA__PHASE_SPARSE,
                6 * (3 * attention + 3 * dense + head) + 4 * 2 * index);
    check_flops(tiny_lightning_config, MSA__PHASE_DENSE,
                6 * (2 * lightning + attention + 3 * dense + head));
}

/* ---- eight-bit index keys ------------------------------------------------------------------ */

enum { SCAN_PAGE = 16, SCAN_PAGES = 10, SCAN_DIM = 32, SCAN_TOKENS = SCAN_PAGE * SCAN_PAGES };

/* One group of queries along the first axis; every key of block b is along it too, sizes[b] long.
 */
static msa_recall scan_blocks(const float *sizes)
{
    static float q[SCAN_TOKENS * SCAN_DIM], k[SCAN_TOKENS * SCAN_DIM];
    msa_recall sums = {0}, mean;
    msa__config *config = calloc(1, sizeof(*config));
    assert_non_null(config);
    config->n_kv_heads = 1;
    config->index_dim = SCAN_DIM;
    config->block_size = SCAN_PAGE;
    config->topk_blocks = 3;
    config->n_local_blocks = 1;
    for (int64_t t = 0; t < SCAN_TOKENS; t++) {
        q[t * SCAN_DIM] = 1;
        k[t * SCAN_DIM] = sizes[t / SCAN_PAGE];
    }
    EXPECT_OK(msa__scan8_measure(config, MSA_DTYPE_F32, q, k, SCAN_TOKENS, &sums));
    EXPECT_OK(
        msa__scan8_measure(config, MSA_DTYPE_F32, q, k, 3 * SCAN_PAGE, &sums)); /* no choice */
    assert_int_equal(sums.n_scanned, MSA__SCAN8_QUERIES);
    sums.n_rows = 1;
    msa__recall_mean(&sums, &mean);
    free(config);
    return mean;
}

/* Blocks of clearly different scores: the scan leaves only those open that are selected, two beside
 * the local one. Equal blocks: it leaves all open. */
static void test_scan_of_eight_bit_keys(void **state)
{
    (void)state;
    float sizes[SCAN_PAGES];
    for (int32_t b = 0; b < SCAN_PAGES; b++) sizes[b] = ldexpf(1, b - 1);
    msa_recall apart = scan_blocks(sizes);
    double share = 0;
    for (int64_t j = 0; j < MSA__SCAN8_QUERIES; j++) {
        int64_t first = 3 * SCAN_PAGE, left = SCAN_TOKENS - 1 - first;
        int64_t token = first + j * left / (MSA__SCAN8_QUERIES - 1);
        share += 2 / (double)(token / SCAN_PAGE) / MSA__SCAN8_QUERIES;
    }
    expect_near(apart.rescored, share, 1e-12);
    expect_near(apart.rescored_max, 2.0 / 3, 1e-12);
    expect_near(apart.rescored_blocks, 2, 1e-12);
    expect_near(apart.fp8_recall, 1, 1e-12);
    for (int32_t b = 0; b < SCAN_PAGES; b++) sizes[b] = 1;
    msa_recall equal = scan_blocks(sizes);
    expect_near(equal.rescored, 1, 1e-12);
    expect_near(equal.fp8_recall, 1, 1e-12);
    assert_true(equal.rescored_random > 0 && equal.rescored_random < 1);
    assert_true(equal.rescored_random == apart.rescored_random);
    /* 97 and 99 are one number in fp8: the lower id wins there, the larger key in truth */
    for (int32_t b = 0; b < SCAN_PAGES; b++) sizes[b] = b < 2 ? 97 : 99;
    msa_recall merged = scan_blocks(sizes);
    assert_true(merged.fp8_recall < 1 && merged.fp8_recall >= 1.0 / 3);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_schedules),
        cmocka_unit_test(test_recall_row),
        cmocka_unit_test(test_recall_of_the_best),
        cmocka_unit_test(test_operations),
        cmocka_unit_test(test_scan_of_eight_bit_keys),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
