/* Every allocation of a sample fails once. */
#include "harness/cmocka_all.h"
#include "harness/failing_malloc.h"
#include "tasks/sample.h"

static void test_oom_task_make(void **state)
{
    (void)state;
    for (int32_t t = 0; msa_task_name(t, NULL); t++) {
        msa_task_args args = sample_args(msa_task_name(t, NULL), 1500, 1);
        for (int64_t n = 1;; n++) {
            msa_task_sample sample;
            msa_task_sample_init(&sample);
            failing_malloc_begin(n);
            msa_status status = msa_task_make(&sample, &args, 0);
            if (!failing_malloc_end()) {
                assert_int_equal(status, MSA_OK);
                msa_task_sample_free(&sample);
                break;
            }
            assert_int_equal(status, MSA_ENOMEM);
            assert_null(sample.memory);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_oom_task_make)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
