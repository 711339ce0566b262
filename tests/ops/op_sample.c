/* sample: every filter against a sorting oracle and the frequencies of fixed draws. */
#include "ops/layer_fixture.h"

#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>

enum { MAX_VOCAB = 64 };

static msa_sample_args new_args(const float *logits, int32_t vocab)
{
    msa_sample_args args;
    msa_sample_args_init(&args);
    args.logits = logits;
    args.vocab = vocab;
    args.temperature = 1;
    args.seed = 12345;
    return args;
}

static msa_status sample(const msa_sample_args *args, int32_t *token)
{
    static _Alignas(64) unsigned char workspace[1 << 14];
    return msa_sample(args, workspace, sizeof(workspace), token);
}

static int32_t sampled(const msa_sample_args *args)
{
    int32_t token = -1;
    EXPECT_OK(sample(args, &token));
    return token;
}

/* ---- oracle: sort, cut, normalise ----------------------------------------------------------- */

typedef struct entry {
    double logit, probability;
    int32_t id;
} entry;

static int compare_entries(const void *a, const void *b)
{
    const entry *x = a, *y = b;
    if (x->logit != y->logit) return x->logit > y->logit ? -1 : 1;
    return x->id - y->id;
}

static void expected_probabilities(const msa_sample_args *args, double *probability)
{
    entry entries[MAX_VOCAB];
    int32_t n = args->vocab;
    for (int32_t i = 0; i < n; i++) {
        double logit = (double)args->logits[i];
        int count = 0;
        for (int64_t j = 0; j < args->n_recent; j++) count += args->recent[j] == i;
        if (count) {
            double r = args->repetition_penalty != 0 ? (double)args->repetition_penalty : 1;
            logit = logit > 0 ? logit / r : logit * r;
            logit -= (double)args->frequency_penalty * count + (double)args->presence_penalty;
        }
        entries[i] = (entry){logit / (double)args->temperature, 0, i};
        probability[i] = 0;
    }
    qsort(entries, (size_t)n, sizeof(entry), compare_entries);
    if (args->top_k > 0 && args->top_k < n) n = args->top_k;
    double total = 0, running = 0, kept = 0;
    for (int32_t i = 0; i < n; i++) {
        entries[i].probability = exp(entries[i].logit - entries[0].logit);
        total += entries[i].probability;
    }
    int32_t n_kept = 0;
    while (n_kept < n) {
        running += entries[n_kept++].probability / total;
        if (args->top_p > 0 && running >= (double)args->top_p) break;
    }
    while (entries[n_kept - 1].probability < (double)args->min_p) n_kept--;
    for (int32_t i = 0; i < n_kept; i++) kept += entries[i].probability;
    for (int32_t i = 0; i < n_kept; i++) {
        probability[entries[i].id] = entries[i].probability / kept;
    }
}

/* Frequencies of n_draws draws: nothing outside the support, and a chi-square that such a
 * distribution exceeds once in a thousand (Wilson and Hilferty's approximation). */
static void expect_distribution(const msa_sample_args *inputs, const char *what)
{
    const int n_draws = 6000;
    double probability[MAX_VOCAB], chi_square = 0, rest = 0;
    int counts[MAX_VOCAB] = {0}, n_cells = 0, rest_count = 0;
    expected_probabilities(inputs, probability);
    msa_sample_args args = *inputs;
    for (int i = 0; i < n_draws; i++) {
        args.draw = (uint64_t)i;
        counts[sampled(&args)]++;
    }
    for (int32_t i = 0; i < args.vocab; i++) {
        double expected = probability[i] * n_draws;
        if (expected == 0) {
            if (counts[i]) fail_msg("%s: token %d is filtered, drawn %d times", what, i, counts[i]);
        } else if (expected < 5) { /* too few for a cell of their own */
            rest += expected;
            rest_count += counts[i];
        } else {
            chi_square += (counts[i] - expected) * (counts[i] - expected) / expected;
            n_cells++;
        }
    }
    if (rest >= 5) {
        chi_square += (rest_count - rest) * (rest_count - rest) / rest;
        n_cells++;
    }
    if (n_cells < 2) return;
    double k = n_cells - 1, c = 2 / (9 * k);
    double limit = k * pow(1 - c + 3.09 * sqrt(c), 3);
    if (chi_square > limit) {
        fail_msg("%s: chi-square %.2f of %d cells exceeds %.2f", what, chi_square, n_cells, limit);
    }
}

static void test_distributions_match_the_oracle(void **state)
{
    (void)state;
    static const int32_t recent[] = {3, 3, 3, 17, 40, 5, 40};
    static const struct {
        float temperature, top_p, min_p, repetition, frequency, presence;
        int32_t top_k, n_recent;
    } settings[] = {
        {1, 0, 0, 0, 0, 0, 0, 0},
        {0.5f, 0, 0, 0, 0, 0, 0, 0},
        {3, 1, 0, 1, 0, 0, 0, 7},
        {1, 0, 0, 0, 0, 0, 5, 0},
        {1, 0, 0, 0, 0, 0, 1, 0},
        {1, 0, 0, 0, 0, 0, 1000, 0},
        {1, 0.7f, 0, 0, 0, 0, 0, 0},
        {1, 0.001f, 0, 0, 0, 0, 0, 0},
        {1, 0, 0.3f, 0, 0, 0, 0, 0},
        {1, 0, 1, 0, 0, 0, 0, 0},
        {1, 0, 0, 1.7f, 0, 0, 0, 7},
        {1, 0, 0, 0, 0.9f, 0, 0, 7},
        {1, 0, 0, 0, 0, 1.3f, 0, 7},
        {0.8f, 0.9f, 0.05f, 1.2f, 0.1f, 0.2f, 20, 7},
        {2, 0.95f, 0.01f, 0.5f, -0.5f, -1, 30, 7},
    };
    float logits[50];
    for (int i = 0; i < 50; i++) logits[i] = (float)(6 * test_uniform(9, (uint64_t)i) - 3);
    for (size_t i = 0; i < sizeof(settings) / sizeof(settings[0]); i++) {
        char what[32];
        msa_sample_args args = new_args(logits, 50);
        args.temperature = settings[i].temperature;
        args.top_p = settings[i].top_p;
        args.min_p = settings[i].min_p;
        args.top_k = settings[i].top_k;
        args.repetition_penalty = settings[i].repetition;
        args.frequency_penalty = settings[i].frequency;
        args.presence_penalty = settings[i].presence;
        args.recent = recent;
        args.n_recent = settings[i].n_recent;
        snprintf(what, sizeof(what), "setting %zu", i);
        expect_distribution(&args, what);
    }
}

/* ---- cases worked out by hand ---------------------------------------------------------------- */

/* Which of the first 8 tokens 500 draws reach, as bits. */
static unsigned reached(msa_sample_args args)
{
    unsigned bits = 0;
    for (args.draw = 0; args.draw < 500; args.draw++) bits |= 1u << sampled(&args);
    return bits;
}

static void test_filters_keep_the_right_prefix(void **state)
{
    (void)state;
    float logits[5]; /* probabilities 1/16, 1/2, 1/8, 1/4, 1/16 */
    static const float probabilities[5] = {0.0625f, 0.5f, 0.125f, 0.25f, 0.0625f};
    for (int i = 0; i < 5; i++) logits[i] = logf(probabilities[i]);
    msa_sample_args args = new_args(logits, 5);
    assert_int_equal(reached(args), 0x1f);
    args.top_k = 4; /* 0 and 4 tie: the lower id stays */
    assert_int_equal(reached(args), 0x0f);
    args.top_k = 2;
    assert_int_equal(reached(args), 0x0a);
    args.top_p = 0.6f; /* of the two that top-k left, 1 has 2/3 */
    assert_int_equal(reached(args), 0x02);
    args.top_k = 0; /* 1/2 is not enough, 3/4 is */
    assert_int_equal(reached(args), 0x0a);
    args.top_p = 0.8f;
    assert_int_equal(reached(args), 0x0e);
    args.top_p = 0;
    args.min_p = 0.4f; /* of the largest */
    assert_int_equal(reached(args), 0x0a);
    args.min_p = 0.2f;
    assert_int_equal(reached(args), 0x0e);
}

static void test_ties_keep_the_lower_ids(void **state)
{
    (void)state;
    static const float equal[8] = {2, 2, 2, 2, 2, 2, 2, 2};
    msa_sample_args args = new_args(equal, 8);
    args.top_k = 3;
    assert_int_equal(reached(args), 0x07);
    args.top_k = 0;
    args.top_p = 0.6f; /* five eighths */
    assert_int_equal(reached(args), 0x1f);
    args.top_p = 0;
    args.min_p = 1;
    assert_int_equal(reached(args), 0xff);
    args.temperature = 0;
    assert_int_equal(sampled(&args), 0);
}

static void test_temperature_limits(void **state)
{
    (void)state;
    static const float logits[4] = {1, 5, 5, 4.999f};
    msa_sample_args args = new_args(logits, 4);
    args.temperature = 1e-40f;
    assert_int_equal(reached(args), 0x06);
    args.temperature = 1e30f;
    assert_int_equal(reached(args), 0x0f);
    args.temperature = 0;
    assert_int_equal(sampled(&args), 1);
}

/* Greedy shows the penalised logits directly: token 0 competes with 1.5. */
static void test_penalties(void **state)
{
    (void)state;
    static const int32_t recent[] = {0, 0, 2};
    float logits[3] = {2, 1.5f, -9};
    msa_sample_args args = new_args(logits, 3);
    args.temperature = 0;
    args.recent = recent;
    args.n_recent = 3;
    assert_int_equal(sampled(&args), 0);
    args.repetition_penalty = 1.3f; /* 1.54 */
    assert_int_equal(sampled(&args), 0);
    args.repetition_penalty = 1.4f; /* 1.43, once whatever the count */
    assert_int_equal(sampled(&args), 1);
    args.repetition_penalty = 0;
    args.frequency_penalty = 0.3f; /* 1.4: twice */
    assert_int_equal(sampled(&args), 1);
    args.n_recent = 1; /* 1.7 */
    assert_int_equal(sampled(&args), 0);
    args.frequency_penalty = 0;
    args.presence_penalty = 0.4f;
    args.n_recent = 3; /* 1.6: once */
    assert_int_equal(sampled(&args), 0);
    args.presence_penalty = 0.6f;
    assert_int_equal(sampled(&args), 1);
    args.repetition_penalty = 0.5f; /* 4 - 0.6 */
    assert_int_equal(sampled(&args), 0);
    logits[0] = -1; /* negative logits are multiplied */
    logits[1] = -1.5f;
    args.presence_penalty = 0;
    args.repetition_penalty = 1.6f;
    assert_int_equal(sampled(&args), 1);
    args.n_recent = 0; /* nothing to look at */
    assert_int_equal(sampled(&args), 0);
}

static void test_degenerate_logits(void **state)
{
    (void)state;
    static const float mixed[6] = {NAN, 1, INFINITY, -INFINITY, INFINITY, 3e38f};
    static const float hopeless[3] = {NAN, -INFINITY, NAN};
    static const float lone[4] = {-INFINITY, NAN, -3e38f, -INFINITY};
    static const int32_t all[3] = {0, 1, 2};
    int32_t token = 77;
    msa_sample_args args = new_args(mixed, 6);
    assert_int_equal(reached(args), 0x14);
    args.top_p = 0.9f;
    args.top_k = 5;
    args.min_p = 0.1f;
    assert_int_equal(reached(args), 0x14);
    args.temperature = 0;
    assert_int_equal(sampled(&args), 2);
    args = new_args(hopeless, 3);
    EXPECT_FAIL(MSA_EINVAL, "sample: logits[0..2], every one is NaN or -inf",
                sample(&args, &token));
    assert_int_equal(token, 77);
    args = new_args(lone, 4);
    assert_int_equal(reached(args), 0x04);
    args = new_args(mixed + 1, 1);
    assert_int_equal(sampled(&args), 0);
    static const float large[3] = {-3e38f, -3e38f, -3e38f};
    args = new_args(large, 3); /* penalties may push every logit out of range */
    args.recent = all;
    args.n_recent = 3;
    args.repetition_penalty = 100;
    EXPECT_FAIL(MSA_EINVAL, "every one is NaN or -inf", sample(&args, &token));
}

/* A vocabulary of real size, sorted both ways and shuffled: selection must not depend on it. */
static void test_large_vocabulary(void **state)
{
    (void)state;
    enum { VOCAB = 200064 };
    float *logits = fixture_alloc(sizeof(float) * VOCAB);
    size_t bytes = msa_sample_workspace_bytes(VOCAB);
    void *workspace = fixture_alloc(bytes);
    for (int order = 0; order < 3; order++) {
        for (int i = 0; i < VOCAB; i++) {
            int rank = order == 0 ? i : order == 1 ? VOCAB - 1 - i : (int)(i * 7919LL % VOCAB);
            logits[i] = -1e-3f * (float)rank;
        }
        msa_sample_args args = new_args(logits, VOCAB);
        for (int k = 1; k <= VOCAB; k *= 37) {
            args.top_k = k;
            args.top_p = k & 1 ? 0.5f : 0;
            for (args.draw = 0; args.draw < 10; args.draw++) {
                int32_t token;
                EXPECT_OK(msa_sample(&args, workspace, bytes, &token));
                assert_true(logits[token] > -1e-3f * (float)k);
            }
        }
    }
}

static void test_same_inputs_give_the_same_token(void **state)
{
    (void)state;
    float logits[MAX_VOCAB];
    int differs_by_draw = 0, differs_by_seed = 0;
    for (int i = 0; i < MAX_VOCAB; i++) logits[i] = (float)test_uniform(4, (uint64_t)i);
    msa_sample_args args = new_args(logits, MAX_VOCAB), other = args;
    int32_t first = sampled(&args);
    other.seed++;
    for (args.draw = 0; args.draw < 50; args.draw++) {
        other.draw = args.draw;
        assert_int_equal(sampled(&args), sampled(&args));
        differs_by_draw += sampled(&args) != first;
        differs_by_seed += sampled(&args) != sampled(&other);
    }
    assert_true(differs_by_draw > 40);
    assert_true(differs_by_seed > 40);
}

static void test_wrong_arguments_are_named(void **state)
{
    (void)state;
    static const float logits[4] = {1, 2, 3, 4};
    int32_t recent[2] = {0, 3}, token;
    msa_sample_args good = new_args(logits, 4), bad;
    good.recent = recent;
    good.n_recent = 2;
    EXPECT_OK(sample(&good, &token));
#define EXPECT_BAD(text, change)                                                                   \
    do {                                                                                           \
        bad = good;                                                                                \
        change;                                                                                    \
        EXPECT_FAIL(MSA_EINVAL, text, sample(&bad, &token));                                       \
    } while (0)
    EXPECT_BAD("sample: logits = NULL", bad.logits = NULL);
    EXPECT_BAD("sample: vocab = 0, must be positive", bad.vocab = 0);
    EXPECT_BAD("sample: n_recent = -1, must not be negative", bad.n_recent = -1);
    EXPECT_BAD("sample: recent = NULL, must hold n_recent = 2 tokens", bad.recent = NULL);
    EXPECT_BAD("sample: recent[1] = 3, must be 0..2 (vocab)", bad.vocab = 3);
    EXPECT_BAD("sample: top_k = -1, must not be negative", bad.top_k = -1);
    EXPECT_BAD("sample: temperature = -1", bad.temperature = -1);
    EXPECT_BAD("sample: temperature = nan", bad.temperature = NAN);
    EXPECT_BAD("sample: temperature = inf", bad.temperature = INFINITY);
    EXPECT_BAD("sample: top_p = 1.5, must be 0..1", bad.top_p = 1.5f);
    EXPECT_BAD("sample: min_p = -0.5, must be 0..1", bad.min_p = -0.5f);
    EXPECT_BAD("sample: repetition_penalty = -1", bad.repetition_penalty = -1);
    EXPECT_BAD("sample: frequency_penalty = nan", bad.frequency_penalty = NAN);
    EXPECT_BAD("sample: presence_penalty = -inf", bad.presence_penalty = -INFINITY);
    EXPECT_BAD("sample: args.flags = 2", bad.flags = 2);
#undef EXPECT_BAD
    _Alignas(64) unsigned char workspace[1024];
    size_t bytes = msa_sample_workspace_bytes(4);
    assert_true(bytes > 0 && bytes < sizeof(workspace));
    EXPECT_FAIL(MSA_EINVAL,
                "sample: workspace_bytes = ", msa_sample(&good, workspace, bytes - 1, &token));
    EXPECT_FAIL(MSA_EINVAL, "sample: workspace = ", msa_sample(&good, NULL, bytes, &token));
    EXPECT_FAIL(MSA_EINVAL, "must be a pointer aligned to 64",
                msa_sample(&good, workspace + 8, bytes, &token));
    EXPECT_FAIL(MSA_EINVAL, "sample: token = NULL", msa_sample(&good, workspace, bytes, NULL));
    EXPECT_FAIL(MSA_EINVAL, "sample: args = NULL", msa_sample(NULL, workspace, bytes, &token));
    assert_int_equal(msa_sample_workspace_bytes(0), 0);
    assert_int_equal(msa_sample_workspace_bytes(-4), 0);
}

/* A caller compiled before temperature existed gets its default, greedy. */
static void test_older_caller(void **state)
{
    (void)state;
    static const float logits[4] = {1, 4, 3, 2};
    msa_sample_args args = new_args(logits, 4);
    args.struct_size = (uint32_t)offsetof(msa_sample_args, temperature);
    args.temperature = NAN; /* beyond the caller's struct: not looked at */
    assert_int_equal(sampled(&args), 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_distributions_match_the_oracle),
        cmocka_unit_test(test_filters_keep_the_right_prefix),
        cmocka_unit_test(test_ties_keep_the_lower_ids),
        cmocka_unit_test(test_temperature_limits),
        cmocka_unit_test(test_penalties),
        cmocka_unit_test(test_degenerate_logits),
        cmocka_unit_test_teardown(test_large_vocabulary, fixture_teardown),
        cmocka_unit_test(test_same_inputs_give_the_same_token),
        cmocka_unit_test(test_wrong_arguments_are_named),
        cmocka_unit_test(test_older_caller),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
