/* Groups of 32 values as MXFP8, against all codes of a float64 oracle. */
#include "harness/cmocka_all.h"

#include "base/numeric.h"
#include "base/rng.h"
#include "convert/mxfp8.h"

#include <float.h>
#include <math.h>

enum { N = MSA__MXFP8_GROUP };

/* ---- the oracle ---------------------------------------------------------------------------- */

/* Magnitude of codes 0..126 by the definition of E4M3. */
static double magnitude(int32_t code)
{
    int32_t exponent = code >> 3, fraction = code & 7;
    return exponent ? ldexp(1 + fraction / 8.0, exponent - 7) : ldexp(fraction / 8.0, -6);
}

/* The smallest scale byte at which no value is above 448; 127 for zeros. */
static int32_t oracle_scale(const float *values)
{
    double largest = 0;
    for (int32_t i = 0; i < N; i++) largest = fmax(largest, fabs((double)values[i]));
    if (largest == 0) return 127;
    int32_t scale = 0;
    while (ldexp(largest, 127 - scale) > 448) scale++;
    return scale;
}

/* The nearest code by trying all, of two equally near ones the even one. */
static int32_t oracle_code(double scaled)
{
    int32_t best = 0;
    for (int32_t code = 1; code <= 126; code++) {
        double error = fabs(magnitude(code) - fabs(scaled));
        double least = fabs(magnitude(best) - fabs(scaled));
        if (error < least || (error == least && code % 2 == 0)) best = code;
    }
    return best | (signbit(scaled) ? 0x80 : 0);
}

static void expect_group(const char *what, const float *values)
{
    uint8_t codes[N], scale;
    double error = msa__mxfp8_quantize(values, codes, &scale), expected = 0;
    int32_t right = oracle_scale(values);
    if (scale != right) fail_msg("%s: scale %d, must be %d", what, scale, right);
    for (int32_t i = 0; i < N; i++) {
        double x = (double)values[i];
        int32_t code = oracle_code(ldexp(x, 127 - right));
        if (codes[i] != code) {
            fail_msg("%s: element %d = %a: code 0x%02x, must be 0x%02x", what, i, x, codes[i],
                     code);
        }
        double q = ldexp(magnitude(code & 127), right - 127) * (code & 128 ? -1 : 1);
        expected += (x - q) * (x - q);
    }
    if (fabs(error - expected) > 1e-12 * expected) {
        fail_msg("%s: squared error %g, must be %g", what, error, expected);
    }
}

/* Zeros behind the values given. */
static void expect_values(const char *what, const float *values, int32_t n)
{
    float group[N] = {0};
    memcpy(group, values, (size_t)n * sizeof(*values));
    expect_group(what, group);
}

#define EXPECT(what, ...)                                                                          \
    do {                                                                                           \
        const float values_[] = {__VA_ARGS__};                                                     \
        expect_values(what, values_, (int32_t)(sizeof(values_) / sizeof(values_[0])));             \
    } while (0)

/* ---- cases --------------------------------------------------------------------------------- */

static void test_ties(void **state)
{
    (void)state;
    /* 448 fixes the scale to 1. Steps are 1/8 of a power of two: 17 is between 16 and 18. */
    EXPECT("ties", 448, 17, 19, -17, -19, 1.0625f, 1.1875f, 15.5f, -15.5f, 432, 416 + 16);
    EXPECT("below and above a tie", 448, nextafterf(17, 0), nextafterf(17, 18));
    EXPECT("up to the next power of two", 448, 15.5f, 31.0f, 248.0f, 0.96875f);
}

static void test_subnormals(void **state)
{
    (void)state;
    EXPECT("subnormal codes", 448, 0x1p-6f, 0x1.8p-7f, 0x1p-9f, 0x1.8p-9f, 0x1.4p-8f);
    EXPECT("ties of subnormal codes", 448, 0x1p-10f, 0x1.8p-9f, -0x1p-10f, 0x1.cp-7f, 0x1.ep-7f);
    EXPECT("around half of the smallest", 448, nextafterf(0x1p-10f, 0), nextafterf(0x1p-10f, 1));
    EXPECT("subnormal f32", 0x1p-149f, 0x1p-140f);
    EXPECT("the smallest scale", 0x1p-126f, -0x1.8p-127f, 0x1p-135f, 0x1p-137f, 0x1p-149f);
    EXPECT("the smallest scale that is chosen", 0x1.cp-119f, 0x1.cp-118f);
}

static void test_zeros(void **state)
{
    (void)state;
    EXPECT("zeros", 0, -0.0f);
    EXPECT("one value", 0.3f);
    EXPECT("zeros among values", 1, -0.0f, 0, -1);
}

static void test_scales(void **state)
{
    (void)state;
    EXPECT("448 does not saturate", 448);
    EXPECT("beyond 448 the scale doubles", nextafterf(448, 449), 449, 1);
    EXPECT("511", 511, 3, 5);
    EXPECT("512", 512, 3, 5);
    EXPECT("the largest", FLT_MAX, -FLT_MAX, 1e30f);
    EXPECT("powers of two", 1, 0.5f, 0.25f, 0x1p-20f);
}

static float draw(uint32_t word, int32_t spread)
{
    float x = (float)(int32_t)word * 0x1p-31f;
    return ldexpf(x, (int)(word % (uint32_t)spread));
}

static void test_random_groups(void **state)
{
    (void)state;
    for (int32_t g = 0; g < 2000; g++) {
        float group[N];
        for (int32_t i = 0; i < N; i += 4) {
            uint32_t words[4];
            msa__philox(1, (uint64_t)(g * N + i), 2, words);
            for (int32_t k = 0; k < 4; k++) {
                group[i + k] = ldexpf(draw(words[k], 1 + g % 20), g % 240 - 140);
            }
        }
        expect_group("random", group);
    }
}

/* What a group became is itself representable: a second time nothing changes. */
static void test_values_that_fit_stay(void **state)
{
    (void)state;
    for (int32_t exponent = -100; exponent <= 100; exponent += 25) {
        for (int32_t first = 0; first < 126; first += N - 1) {
            float group[N];
            uint8_t codes[N], scale;
            group[0] = ldexpf(448, exponent);
            for (int32_t i = 1; i < N; i++) {
                group[i] = ldexpf((float)magnitude((first + i) % 127), exponent);
            }
            assert_true(msa__mxfp8_quantize(group, codes, &scale) == 0);
            assert_int_equal(scale, 127 + exponent);
            for (int32_t i = 1; i < N; i++) assert_int_equal(codes[i], (first + i) % 127);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ties),          cmocka_unit_test(test_subnormals),
        cmocka_unit_test(test_zeros),         cmocka_unit_test(test_scales),
        cmocka_unit_test(test_random_groups), cmocka_unit_test(test_values_that_fit_stay),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
