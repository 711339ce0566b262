/* Operator memory of a host context, and asking for a CUDA device that is not there. */
#include "harness/cmocka_all.h"

#include "msa/memory.h"

static void test_host_memory_is_ordinary_memory(void **state)
{
    (void)state;
    msa_context_args args;
    msa_context_args_init(&args);
    args.backend = "ref";
    msa_context *ctx;
    EXPECT_OK(msa_context_create(&ctx, &args));
    assert_int_equal(msa_context_uses_device_memory(ctx), 0);
    void *memory;
    EXPECT_OK(msa_memory_alloc(ctx, 1000, &memory));
    assert_int_equal((uintptr_t)memory % 256, 0);
    char text[] = "index keys", back[sizeof(text)] = "";
    EXPECT_OK(msa_memory_upload(ctx, memory, text, sizeof(text)));
    EXPECT_OK(msa_memory_copy(ctx, (char *)memory + 500, memory, sizeof(text)));
    EXPECT_OK(msa_memory_download(ctx, back, (char *)memory + 500, sizeof(text)));
    assert_string_equal(back, text);
    void *staging;
    EXPECT_OK(msa_memory_alloc_host(ctx, 64, &staging));
    memcpy(staging, "values", sizeof("values"));
    EXPECT_OK(msa_memory_upload_async(ctx, memory, staging, sizeof("values")));
    EXPECT_OK(msa_memory_download_async(ctx, (char *)staging + 32, memory, sizeof("values")));
    EXPECT_OK(msa_context_synchronize(ctx));
    assert_string_equal((char *)staging + 32, "values");
    int64_t free_bytes = 1, total_bytes = 1;
    EXPECT_OK(msa_memory_info(ctx, &free_bytes, &total_bytes));
    assert_int_equal(free_bytes, 0); /* a host's memory is the system's to know */
    assert_int_equal(total_bytes, 0);
    msa_memory_free_host(ctx, staging, 64);
    msa_memory_free_host(ctx, NULL, 0);
    msa_memory_free(ctx, memory, 1000);
    msa_memory_free(ctx, NULL, 0);
    msa_context_destroy(ctx);
}

/* Where the plugin or a device is missing, the message says which. */
static void test_cuda_needs_its_library_and_a_device(void **state)
{
    (void)state;
    msa_context_args args;
    msa_context_args_init(&args);
    args.backend = "cuda";
    msa_context *ctx;
    msa_status status = msa_context_create(&ctx, &args);
    if (status == MSA_OK) {
        assert_int_equal(msa_context_uses_device_memory(ctx), 1);
        msa_context_destroy(ctx);
        return;
    }
    assert_int_equal(status, MSA_EUNSUPPORTED);
    assert_non_null(strstr(msa_last_error(), "context: backend = cuda, not available: "));
    assert_null(ctx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_host_memory_is_ordinary_memory),
        cmocka_unit_test(test_cuda_needs_its_library_and_a_device),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
