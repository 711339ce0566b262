/* See layer_gradient.h. */
#include "ops/layer_gradient.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

msa_context *reference_context(void)
{
    if (!test_backend()) return context_at(0);
    static msa_context *ctx; /* one for the program: it holds no memory of a test */
    if (!ctx) ctx = open_test_context("ref", NULL, 1);
    return ctx;
}

static int64_t extent(const msa_tensor *t, int32_t dim)
{
    return dim < t->n_dims ? t->shape[dim] : 1;
}

#define FOR_EACH_ELEMENT(t)                                                                        \
    for (int64_t i = 0; i < extent(t, 0); i++)                                                     \
        for (int64_t j = 0; j < extent(t, 1); j++)                                                 \
            for (int64_t k = 0; k < extent(t, 2); k++)

msa_tensor tensor_as_f32(const msa_tensor *t)
{
    msa_tensor copy =
        tensor_new(MSA_DTYPE_F32, t->n_dims, extent(t, 0), extent(t, 1), extent(t, 2), 0);
    FOR_EACH_ELEMENT(t) tensor_set(&copy, i, j, k, tensor_at(t, i, j, k));
    return copy;
}

msa_tensor slopes_of(loss_fn loss, const void *args, const msa_tensor *x, const msa_tensor *start)
{
    const double step = 0x1p-10;
    msa_tensor slopes = tensor_as_f32(x);
    FOR_EACH_ELEMENT(x)
    {
        double value = tensor_at(x, i, j, k), base = 0;
        tensor_set(x, i, j, k, value + step);
        double above = loss(args), high = tensor_at(x, i, j, k);
        tensor_set(x, i, j, k, value - step);
        double below = loss(args), low = tensor_at(x, i, j, k);
        tensor_set(x, i, j, k, value);
        if (start && start->data) base = tensor_at(start, i, j, k);
        tensor_set(&slopes, i, j, k, base + (above - below) / (high - low));
    }
    return slopes;
}

void expect_near(const msa_tensor *t, const msa_tensor *exact, double relative, const char *what)
{
    static const double half_steps[3] = {0x1p-24, 0x1p-8, 0x1p-11};
    double largest = 0;
    FOR_EACH_ELEMENT(exact)
    {
        double value = fabs(tensor_at(exact, i, j, k));
        if (isfinite(value)) largest = fmax(largest, value);
    }
    FOR_EACH_ELEMENT(exact)
    {
        double expected = tensor_at(exact, i, j, k), actual = tensor_at(t, i, j, k);
        double limit = relative * largest + half_steps[t->dtype] * fabs(expected) + 0x1p-24;
        int good = isnan(expected) ? isnan(actual) : fabs(actual - expected) <= limit;
        if (!good) {
            fail_msg("%s: element %lld, %lld, %lld is %.9g, must be %.9g within %.3g", what,
                     (long long)i, (long long)j, (long long)k, actual, expected, limit);
        }
    }
}

static msa_tensor head_of(const msa_tensor *t, int64_t head)
{
    msa_tensor one = *t;
    one.data = (unsigned char *)t->data + head * t->stride[1] * (int64_t)msa_dtype_bytes(t->dtype);
    one.shape[1] = 1;
    return one;
}

void expect_near_heads(const msa_tensor *t, const msa_tensor *exact, double relative,
                       const char *what)
{
    for (int64_t head = 0; head < exact->shape[1]; head++) {
        char label[160];
        msa_tensor a = head_of(t, head), b = head_of(exact, head);
        snprintf(label, sizeof(label), "%s, head %d", what, (int)head);
        expect_near(&a, &b, relative, label);
    }
}
