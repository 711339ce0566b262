/* Failing every allocation of what has no context: JSON, safetensors files, configs, made models.
 * Each failure is MSA_ENOMEM, leaves no unfinished file, and (sanitizer build) leaks nothing. */
#include "harness/cmocka_all.h"
#include "harness/failing_malloc.h"
#include "model/folder.h"

#include "model/json.h"
#include "msa/model.h"
#include "msa/safetensors.h"

#include <stdio.h>
#include <stdlib.h>

typedef msa_status (*attempt)(const folder *f);

/* Returns how many allocations the attempt makes. */
static int64_t sweep(const folder *f, attempt attempt_once)
{
    for (int64_t n = 1;; n++) {
        failing_malloc_begin(n);
        msa_status status = attempt_once(f);
        if (!failing_malloc_end()) {
            EXPECT_OK(status);
            return n - 1;
        }
        assert_int_equal(status, MSA_ENOMEM);
        assert_non_null(strstr(msa_last_error(), "no memory"));
    }
}

static msa_status parse_many_keys(const folder *f)
{
    static const char text[] = "{\"a\":1,\"b\":2,\"c\":3,\"d\":4,\"e\":5,\"f\":6,\"g\":7,\"h\":8,"
                               "\"i\":9,\"j\":10,\"k\":11,\"l\":12,\"m\":13,\"n\":14,\"o\":15,"
                               "\"p\":16,\"q\":17,\"r\":\"a rather long string to copy\"}";
    const msa__json *root;
    (void)f;
    msa_status status = msa__json_parse(&root, NULL, "text", text, sizeof(text) - 1);
    msa__json_free(root);
    return status;
}

static void test_oom_json(void **state)
{
    (void)state;
    assert_int_equal(sweep(NULL, parse_many_keys), 2); /* the document, and a table of keys */
}

static msa_status write_file(const folder *f)
{
    const int64_t shape[1] = {3};
    int64_t index = 0;
    msa_safetensors_writer *writer;
    msa_status status = msa_safetensors_writer_create(&writer, folder_path(f, "x.safetensors"));
    if (status == MSA_OK) {
        status = msa_safetensors_writer_declare(writer, "x", MSA_DTYPE_U8, 1, shape, &index);
    }
    if (status == MSA_OK) status = msa_safetensors_writer_write(writer, index, 0, "abc", 3);
    if (status == MSA_OK) status = msa_safetensors_writer_finish(writer);
    msa_safetensors_writer_destroy(writer);
    return status;
}

static msa_status read_file(const folder *f)
{
    msa_safetensors *file;
    msa_status status = msa_safetensors_open(&file, folder_path(f, "x.safetensors"));
    msa_safetensors_close(file);
    return status;
}

static void test_oom_safetensors(void **state)
{
    (void)state;
    folder f = folder_create();
    assert_true(sweep(&f, write_file) >= 6);
    assert_int_equal(folder_count(&f), 1);
    assert_true(sweep(&f, read_file) >= 4);
    folder_remove(&f);
}

static msa_status make_model(const folder *f)
{
    return msa_model_make(f->dir, "mxfp8-tiny", 1, NULL, NULL);
}

static msa_status read_info(const folder *f)
{
    msa_model_info info;
    msa_model_info_init(&info);
    return msa_model_info_from_config(f->dir, &info);
}

static void test_oom_model_folder(void **state)
{
    (void)state;
    folder f = folder_create();
    assert_true(sweep(&f, make_model) > 100);
    assert_int_equal(folder_count(&f), 5);
    assert_true(sweep(&f, read_info) >= 5); /* the text, the tree, the names of ignored layers */
    folder_remove(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_oom_json),
        cmocka_unit_test(test_oom_safetensors),
        cmocka_unit_test(test_oom_model_folder),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
