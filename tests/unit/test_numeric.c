/* Conversions: exhaustive round trips, and rounding against the two neighbours. */
#include "harness/cmocka_all.h"

#include "base/numeric.h"

#include <math.h>

static void test_bf16_round_trip_is_exact(void **state)
{
    (void)state;
    for (uint32_t h = 0; h < 0x10000; h++) {
        float x = bf16_to_f32((uint16_t)h);
        uint16_t back = f32_to_bf16(x);
        if (isnan(x)) {
            assert_true(isnan(bf16_to_f32(back)));
        } else {
            assert_int_equal(back, h);
        }
    }
}

static void test_f16_round_trip_is_exact(void **state)
{
    (void)state;
    for (uint32_t h = 0; h < 0x10000; h++) {
        float x = f16_to_f32((uint16_t)h);
        uint16_t back = f32_to_f16(x);
        if (isnan(x)) {
            assert_true(isnan(f16_to_f32(back)));
        } else {
            assert_int_equal(back, h);
        }
    }
}

static void test_fp8_round_trip_is_exact(void **state)
{
    (void)state;
    for (uint32_t v = 0; v < 0x100; v++) {
        float x = fp8_to_f32((uint8_t)v);
        if (!isnan(x)) assert_int_equal(f32_to_fp8(x), v);
    }
    assert_true(isnan(fp8_to_f32(f32_to_fp8(NAN))));
    assert_int_equal(f32_to_fp8(1e9f), 0x7e);
    assert_int_equal(f32_to_fp8(-INFINITY), 0xfe);
}

/* Every midpoint between neighbours goes to the even code, and a hair beside it to the nearer one. */
static void test_fp8_rounds_to_nearest_even(void **state)
{
    (void)state;
    for (uint32_t v = 0; v < 0x7e; v++) {
        float low = fp8_to_f32((uint8_t)v), high = fp8_to_f32((uint8_t)(v + 1));
        float middle = (low + high) / 2;
        assert_int_equal(f32_to_fp8(middle), v & 1 ? v + 1 : v);
        assert_int_equal(f32_to_fp8(nextafterf(middle, 0)), v);
        assert_int_equal(f32_to_fp8(nextafterf(middle, 1e9f)), v + 1);
    }
}

static void test_f16_rounds_to_nearest_even(void **state)
{
    (void)state;
    for (uint32_t h = 0; h < 0x7bff; h++) {
        float low = f16_to_f32((uint16_t)h), high = f16_to_f32((uint16_t)(h + 1));
        float middle = (low + high) / 2;
        assert_int_equal(f32_to_f16(middle), h & 1 ? h + 1 : h);
        assert_int_equal(f32_to_f16(nextafterf(middle, 0)), h);
        assert_int_equal(f32_to_f16(nextafterf(middle, 1e9f)), h + 1);
    }
    assert_int_equal(f32_to_f16(65519.996f), 0x7bff);
    assert_int_equal(f32_to_f16(65520.0f), 0x7c00);
}

static void test_e8m0_values(void **state)
{
    (void)state;
    assert_true(e8m0_to_f32(127) == 1.0f);
    assert_true(e8m0_to_f32(0) == 0x1p-127f);
    assert_true(e8m0_to_f32(254) == 0x1p127f);
    assert_true(isnan(e8m0_to_f32(255)));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bf16_round_trip_is_exact),
        cmocka_unit_test(test_f16_round_trip_is_exact),
        cmocka_unit_test(test_fp8_round_trip_is_exact),
        cmocka_unit_test(test_fp8_rounds_to_nearest_even),
        cmocka_unit_test(test_f16_rounds_to_nearest_even),
        cmocka_unit_test(test_e8m0_values),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
