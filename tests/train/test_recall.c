/* Recall of every kind that chooses blocks: the mass that a selection captures is also
 * exp(L_sparse - L_dense), (M19), of the sums that the walk itself makes. */
#include "train_fixture.h"

#include "harness/cmocka_all.h"

#include "base/error.h"
#include "train/recall.h"

#include <math.h>

typedef struct expectation {
    double captured[TINY_LAYERS]; /* sums over rows with a choice */
    int64_t n_rows[TINY_LAYERS];
    float out[TINY_TOKENS * 64], dense[TINY_TOKENS * 4]; /* of full attention */
} expectation;

/* Tokens from which on a query has a choice. */
static int64_t first_choice(const msa__config *c, int32_t layer)
{
    msa__attention_kind kind = c->layers[layer].attention;
    return msa__row_ids(c, kind) * c->block_size;
}

static msa_status expect_layer(void *user, msa__walk *walk, int32_t layer)
{
    expectation *e = user;
    const msa__config *c = walk->args.config;
    const msa__layer_state *s = &walk->layers[layer];
    const msa__walk_batch *batch = tiny_batch();
    if (!msa__recall_selects(c, layer)) return MSA_OK;
    MSA_TRY(msa__walk_attend_keys(walk, s, 0, e->out, e->dense));
    int64_t n_heads = c->n_q_heads, groups = c->n_kv_heads, per_group = n_heads / groups;
    int64_t n_parts = msa__row_parts(c, c->layers[layer].attention), members = per_group / n_parts;
    for (int32_t i = 0; i < batch->n_tokens; i++) {
        if (batch->positions[i] < first_choice(c, layer)) continue;
        for (int64_t row = 0; row < groups * n_parts; row++) {
            int64_t group = row / n_parts, part = row % n_parts;
            double sum = 0;
            for (int64_t m = 0; m < members; m++) {
                int64_t of_part = (part * batch->n_tokens + i) * (n_heads / n_parts);
                float sparse = s->lse[of_part + group * members + m];
                float dense = e->dense[i * n_heads + group * per_group + part + m];
                sum += exp((double)sparse - (double)dense);
            }
            e->captured[layer] += sum / (double)members;
            e->n_rows[layer]++;
        }
    }
    return MSA_OK;
}

static void check(const char *config, const int64_t n_rows[TINY_LAYERS])
{
    tiny t;
    expectation e = {.n_rows = {0}};
    msa__recall_probe probe;
    msa_recall layers[TINY_LAYERS];
    tiny_create(&t, config, "cpu", 2, MSA_DTYPE_F32, MSA__KEEP_ALL);
    t.walk.mode = (msa__walk_mode){.phase = MSA__PHASE_SPARSE, .see = expect_layer, .user = &e};
    EXPECT_OK(msa__walk_forward(&t.walk, tiny_batch()));
    t.walk.mode = (msa__walk_mode){.phase = MSA__PHASE_SPARSE};
    EXPECT_OK(msa__recall_create(&probe, t.ctx, &t.config, MSA_DTYPE_F32, TINY_TOKENS));
    EXPECT_OK(msa__recall_walk(&probe, &t.walk, tiny_batch()));
    msa__recall_finish(&probe, layers);
    for (int32_t i = 0; i < TINY_LAYERS; i++) {
        assert_int_equal(layers[i].n_rows, n_rows[i]);
        if (n_rows[i] < 0) continue;
        assert_int_equal(e.n_rows[i], n_rows[i]);
        double expected = e.captured[i] / (double)n_rows[i];
        if (!(fabs(layers[i].captured_mass - expected) < 1e-5)) {
            fail_msg("layer %d: %.9g, not %.9g", i, layers[i].captured_mass, expected);
        }
        assert_true(layers[i].oracle_ratio <= layers[i].oracle_ratio_forced + 1e-9);
        assert_true(layers[i].block_recall > 0 && layers[i].block_recall <= 1);
    }
    msa__recall_destroy(&probe);
    tiny_destroy(&t);
}

/* Rows: tokens with a choice in sequences of 10, 50 and 36, times the choices of a token. */
static void test_blocks_of_groups(void **state)
{
    (void)state;
    check(tiny_config, (const int64_t[]){-1, 2 * (18 + 4), 2 * (18 + 4)});
    check(tiny_window_config, (const int64_t[]){-1, -1, 2 * 2});
}

static void test_blocks_of_heads(void **state)
{
    (void)state;
    check(tiny_moba_config, (const int64_t[]){4 * (18 + 4), 2 * (18 + 4), 4 * (18 + 4)});
    check(tiny_moba_pages_config, (const int64_t[]){4 * (18 + 4), 2 * (18 + 4), -1});
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_blocks_of_groups),
        cmocka_unit_test(test_blocks_of_heads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
