/* Gradients of a whole model: against finite differences, and the same bits where they must be. */
#include "train_fixture.h"

#include "harness/cmocka_all.h"
#include "harness/reduced.h"

#include "base/rng.h"
#include "msa/memory.h"

#include <math.h>
#include <stdlib.h>

static msa__walk_mode mode_of(msa__phase phase)
{
    return (msa__walk_mode){.phase = phase,
                            .loss_weight = 1.0f / TINY_TARGETS,
                            .index_weight = 1.0f / (2 * TINY_TOKENS)};
}

/* ---- finite differences ------------------------------------------------------------------- */

/* Unit vectors: the gradient's direction and a random one, added. A gradient with parts that are
 * too much fails along the first, one with parts missing along the second. */
static void choose_direction(const float *gradient, int64_t n, uint64_t stream, double *direction)
{
    double g = 0, r = 0;
    for (int64_t i = 0; i < n; i++) {
        uint32_t words[4];
        msa__philox(11, (uint64_t)i, stream, words);
        direction[i] = 2 * (double)msa__uniform(words[0]) - 1;
        g += (double)gradient[i] * (double)gradient[i];
        r += direction[i] * direction[i];
    }
    for (int64_t i = 0; i < n; i++) {
        direction[i] = direction[i] / sqrt(r) + (g > 0 ? (double)gradient[i] / sqrt(g) : 0);
    }
}

static tiny_loss loss_at(tiny *t, const msa__walk_mode *mode, const msa__parameter *one,
                         const float *values, const double *direction, double step)
{
    float *moved = malloc((size_t)one->n * sizeof(*moved));
    assert_non_null(moved);
    for (int64_t i = 0; i < one->n; i++)
        moved[i] = (float)((double)values[i] + step * direction[i]);
    EXPECT_OK(msa__parameters_put(&t->parameters, one, 0, one->n, moved));
    free(moved);
    return tiny_forward(t, mode);
}

/* What is chosen, blocks and experts, must be the same at both ends for the difference to mean
 * anything. */
static uint64_t choices(const tiny *t)
{
    uint64_t hash = 14695981039346656037u;
    for (int32_t layer = 0; layer < t->config.n_layers; layer++) {
        int64_t n_rows =
            TINY_TOKENS * msa__row_heads(&t->config, t->config.layers[layer].attention);
        int64_t n_blocks = n_rows * msa__walk_topk(&t->walk, layer);
        int64_t n_ids = t->config.layers[layer].moe ? TINY_TOKENS * 2 : 0;
        int64_t n_tokens = TINY_TOKENS * (int64_t)t->config.dsa_topk;
        if (!msa__walk_lists_tokens(&t->walk, layer)) n_tokens = 0;
        const void *arrays[] = {t->walk.layers[layer].blocks, t->walk.expert_ids[layer],
                                t->walk.layers[layer].tokens};
        int64_t counts[] = {n_blocks, n_ids, n_tokens};
        for (int a = 0; a < 3; a++) {
            if (!counts[a]) continue;
            float *copy = tiny_copy(t, arrays[a], counts[a]);
            const unsigned char *bytes = (const unsigned char *)copy;
            for (int64_t i = 0; i < 4 * counts[a]; i++) hash = (hash ^ bytes[i]) * 1099511628211u;
            free(copy);
        }
    }
    return hash;
}

static int32_t is_index(const msa__parameter *one)
{
    return one->group == MSA__GROUP_INDEX_DECAYED || one->group == MSA__GROUP_INDEX_UNDECAYED;
}

/* The index branch learns from its KL alone, the backbone from the language loss alone. */
static void check_tensor(tiny *t, const msa__walk_mode *mode, const msa__parameter *one,
                         const float *gradients)
{
    const float *gradient = gradients + one->offset;
    double *direction = malloc((size_t)one->n * sizeof(*direction)), expected = 0, step = 0.004;
    assert_non_null(direction);
    float *values = tiny_copy(t, t->parameters.masters + one->offset, one->n);
    choose_direction(gradient, one->n, (uint64_t)one->offset, direction);
    for (int64_t i = 0; i < one->n; i++) expected += (double)gradient[i] * direction[i];
    tiny_loss above = loss_at(t, mode, one, values, direction, step);
    uint64_t chosen = choices(t);
    tiny_loss below = loss_at(t, mode, one, values, direction, -step);
    uint64_t same = chosen == choices(t);
    for (int halvings = 0; !same && halvings < 4; halvings++) {
        step /= 2;
        above = loss_at(t, mode, one, values, direction, step);
        chosen = choices(t);
        below = loss_at(t, mode, one, values, direction, -step);
        same = chosen == choices(t);
    }
    assert_true(same);
    double found = is_index(one) ? above.index - below.index : above.language - below.language;
    found /= 2 * step;
    double tolerance = 0.01 * fabs(expected) + 2e-6 / step;
    if (!(fabs(found - expected) <= tolerance)) {
        fail_msg("%s: difference %g, gradient %g, step %g", one->spec.name, found, expected, step);
    }
    EXPECT_OK(msa__parameters_put(&t->parameters, one, 0, one->n, values));
    free(values);
    free(direction);
}

static void check_model(const char *config, msa__phase phase)
{
    tiny t;
    msa__walk_mode mode = mode_of(phase);
    tiny_create(&t, config, tiny_backend(), 1, MSA_DTYPE_F32, MSA__KEEP_ALL);
    tiny_gradients(&t, &mode);
    float *gradients = tiny_copy(&t, t.parameters.gradients, t.parameters.n);
    for (int32_t i = 0; i < t.parameters.n_list; i += test_is_reduced() ? 7 : 1) {
        const msa__parameter *one = &t.parameters.list[i];
        if (one->group == MSA__GROUP_ROUTER_BIAS) continue;
        if (is_index(one) && phase == MSA__PHASE_DENSE) continue;
        check_tensor(&t, &mode, one, gradients);
    }
    free(gradients);
    tiny_destroy(&t);
}

static void test_differences_dense(void **state)
{
    (void)state;
    check_model(tiny_config, MSA__PHASE_DENSE);
}

static void test_differences_warmup(void **state)
{
    (void)state;
    check_model(tiny_config, MSA__PHASE_WARMUP);
}

static void test_differences_sparse(void **state)
{
    (void)state;
    check_model(tiny_config, MSA__PHASE_SPARSE);
}

static void test_differences_windows(void **state)
{
    (void)state;
    check_model(tiny_window_config, MSA__PHASE_DENSE);
}

static void test_differences_moba(void **state)
{
    (void)state;
    check_model(tiny_moba_config, MSA__PHASE_DENSE);
}

static void test_differences_lightning(void **state)
{
    (void)state;
    check_model(tiny_lightning_config, MSA__PHASE_DENSE);
}

static void test_differences_dsa(void **state)
{
    (void)state;
    check_model(tiny_dsa_config, MSA__PHASE_WARMUP);
    check_model(tiny_dsa_config, MSA__PHASE_SPARSE);
}

/* ---- the same bits ------------------------------------------------------------------------ */

static float *gradients_of(const char *config, const char *backend, int32_t n_threads,
                           msa_dtype dtype, msa__keep keep, const msa__walk_mode *mode,
                           msa__parameters *layout)
{
    tiny t;
    tiny_create(&t, config, backend, n_threads, dtype, keep);
    tiny_gradients(&t, mode);
    float *gradients = tiny_copy(&t, t.parameters.gradients, t.parameters.n);
    if (layout) *layout = t.parameters;
    tiny_destroy(&t);
    return gradients;
}

static void expect_same(const float *a, const float *b, int64_t begin, int64_t end)
{
    for (int64_t i = begin; i < end; i++) {
        if (memcmp(&a[i], &b[i], sizeof(*a)) == 0) continue;
        fail_msg("element %lld: %a and %a", (long long)i, (double)a[i], (double)b[i]);
    }
}

static int32_t any_nonzero(const float *x, int64_t begin, int64_t end)
{
    for (int64_t i = begin; i < end; i++) {
        if (x[i] != 0) return 1;
    }
    return 0;
}

/* Stop-gradient: with KL or without, the backbone's gradients are the same bits, and the language
 * loss gives the index branch nothing. */
static void test_kl_leaves_backbone_alone(void **state)
{
    (void)state;
    for (int n = 0; n < 4; n++) {
        const char *config = n / 2 ? tiny_dsa_config : tiny_config;
        msa__parameters layout;
        msa__walk_mode with = mode_of(n % 2 ? MSA__PHASE_SPARSE : MSA__PHASE_WARMUP);
        msa__walk_mode without = with;
        without.index_weight = 0;
        float *a =
            gradients_of(config, tiny_backend(), 2, MSA_DTYPE_F32, MSA__KEEP_ALL, &with, &layout);
        float *b =
            gradients_of(config, tiny_backend(), 2, MSA_DTYPE_F32, MSA__KEEP_ALL, &without, NULL);
        int64_t backbone = layout.group_begin[MSA__GROUP_UNDECAYED];
        expect_same(a, b, backbone, layout.n);
        assert_true(any_nonzero(a, 0, backbone));
        assert_false(any_nonzero(b, 0, backbone));
        without = with;
        without.loss_weight = 0;
        float *c =
            gradients_of(config, tiny_backend(), 2, MSA_DTYPE_F32, MSA__KEEP_ALL, &without, NULL);
        expect_same(a, c, 0, backbone);
        assert_false(any_nonzero(c, backbone, layout.n));
        free(a);
        free(b);
        free(c);
    }
}

/* The ablation without stop-gradient does reach the backbone, and changes nothing of the index. */
static void test_ablation_reaches_backbone(void **state)
{
    (void)state;
    for (int n = 0; n < 2; n++) {
        const char *config = n ? tiny_dsa_config : tiny_config;
        msa__parameters layout;
        msa__walk_mode detached = mode_of(MSA__PHASE_SPARSE), attached = detached;
        attached.index_reaches_backbone = 1;
        attached.loss_weight = 0;
        float *a = gradients_of(config, tiny_backend(), 2, MSA_DTYPE_F32, MSA__KEEP_ALL, &detached,
                                &layout);
        float *b =
            gradients_of(config, tiny_backend(), 2, MSA_DTYPE_F32, MSA__KEEP_ALL, &attached, NULL);
        int64_t backbone = layout.group_begin[MSA__GROUP_UNDECAYED];
        assert_true(any_nonzero(b, backbone, layout.n));
        free(a);
        free(b);
    }
}

static void test_frozen_backbone_gives_same_index_gradients(void **state)
{
    (void)state;
    for (int n = 0; n < 4; n++) {
        const char *config = n / 2 ? tiny_dsa_config : tiny_config;
        msa__parameters layout;
        msa__walk_mode open = mode_of(n % 2 ? MSA__PHASE_SPARSE : MSA__PHASE_WARMUP);
        msa__walk_mode frozen = open;
        frozen.freeze_backbone = 1;
        float *a =
            gradients_of(config, tiny_backend(), 2, MSA_DTYPE_F32, MSA__KEEP_ALL, &open, &layout);
        float *b = gradients_of(config, tiny_backend(), 2, MSA_DTYPE_F32, MSA__KEEP_NOTHING,
                                &frozen, NULL);
        int64_t backbone = layout.group_begin[MSA__GROUP_UNDECAYED];
        expect_same(a, b, 0, backbone);
        assert_false(any_nonzero(b, backbone, layout.n));
        free(a);
        free(b);
    }
}

static const struct {
    const char *const *config;
    msa__phase phase;
} models[] = {
    {&tiny_config, MSA__PHASE_DENSE},      {&tiny_config, MSA__PHASE_WARMUP},
    {&tiny_config, MSA__PHASE_SPARSE},     {&tiny_window_config, MSA__PHASE_DENSE},
    {&tiny_moba_config, MSA__PHASE_DENSE}, {&tiny_lightning_config, MSA__PHASE_DENSE},
    {&tiny_dsa_config, MSA__PHASE_WARMUP}, {&tiny_dsa_config, MSA__PHASE_SPARSE},
};
#define N_MODELS (int)(sizeof(models) / sizeof(models[0]))

static void test_same_bits_for_recomputation_and_threads(void **state)
{
    (void)state;
    for (int i = 0; i < 2 * N_MODELS; i += test_is_reduced() ? 3 : 1) {
        msa_dtype dtype = i % 2 ? MSA_DTYPE_BF16 : MSA_DTYPE_F32;
        const char *config = *models[i / 2].config;
        msa__parameters layout;
        msa__walk_mode mode = mode_of(models[i / 2].phase);
        float *a = gradients_of(config, tiny_backend(), 1, dtype, MSA__KEEP_ALL, &mode, &layout);
        float *b = gradients_of(config, tiny_backend(), 1, dtype, MSA__KEEP_RESIDUAL, &mode, NULL);
        float *c = gradients_of(config, tiny_backend(), 3, dtype, MSA__KEEP_ALL, &mode, NULL);
        expect_same(a, b, 0, layout.n);
        expect_same(a, c, 0, layout.n);
        free(a);
        free(b);
        free(c);
    }
}

/* The backend's gradients are those of the specification. */
static void test_backends_agree(void **state)
{
    (void)state;
    for (int m = 0; m < N_MODELS; m += test_is_reduced() ? 3 : 1) {
        const char *config = *models[m].config;
        msa__parameters layout;
        msa__walk_mode mode = mode_of(models[m].phase);
        float *a = gradients_of(config, "ref", 1, MSA_DTYPE_F32, MSA__KEEP_ALL, &mode, &layout);
        float *b =
            gradients_of(config, tiny_backend(), 2, MSA_DTYPE_F32, MSA__KEEP_ALL, &mode, NULL);
        double difference = 0, norm = 0;
        for (int64_t i = 0; i < layout.n; i++) {
            double d = (double)a[i] - (double)b[i];
            difference += d * d;
            norm += (double)a[i] * (double)a[i];
        }
        assert_true(norm > 0);
        if (!(sqrt(difference / norm) < 1e-4)) fail_msg("apart by %g", sqrt(difference / norm));
        free(a);
        free(b);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_differences_dense),
        cmocka_unit_test(test_differences_warmup),
        cmocka_unit_test(test_differences_sparse),
        cmocka_unit_test(test_differences_windows),
        cmocka_unit_test(test_differences_moba),
        cmocka_unit_test(test_differences_lightning),
        cmocka_unit_test(test_differences_dsa),
        cmocka_unit_test(test_kl_leaves_backbone_alone),
        cmocka_unit_test(test_ablation_reaches_backbone),
        cmocka_unit_test(test_frozen_backbone_gives_same_index_gradients),
        cmocka_unit_test(test_same_bits_for_recomputation_and_threads),
        cmocka_unit_test(test_backends_agree),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
