/* Safetensors: what the writer writes the reader reads, and what the reader refuses. */
#include "harness/cmocka_all.h"
#include "model/folder.h"

#include "base/alloc.h"
#include "model/json.h"
#include "model/safetensors.h"

#include <stdio.h>
#include <stdlib.h>

/* ---- round trip
 * ------------------------------------------------------------------------------------ */

static void test_written_tensors_are_read(void **state)
{
    (void)state;
    folder f = folder_create();
    msa_safetensors_writer *writer;
    msa_safetensors *file;
    msa_tensor t;
    int64_t a, b, c, d;
    const int64_t shape_a[2] = {3, 5}, shape_c[3] = {2, 0, 4}, shape_d[1] = {7};
    float values_a[15];
    uint8_t values_d[7] = {1, 2, 3, 4, 5, 6, 7};
    int64_t scalar = -42;
    for (int i = 0; i < 15; i++) values_a[i] = (float)i * 0.5f;
    EXPECT_OK(msa_safetensors_writer_create(&writer, folder_path(&f, "x.safetensors")));
    EXPECT_OK(msa_safetensors_writer_declare(writer, "a", MSA_DTYPE_F32, 2, shape_a, &a));
    EXPECT_OK(msa_safetensors_writer_declare(writer, "b", MSA_DTYPE_I64, 0, NULL, &b));
    EXPECT_OK(msa_safetensors_writer_declare(writer, "c", MSA_DTYPE_BF16, 3, shape_c, &c));
    EXPECT_OK(msa_safetensors_writer_declare(writer, "d", MSA_DTYPE_F8_E4M3, 1, shape_d, &d));
    EXPECT_OK(msa_safetensors_writer_write(writer, d, 3, values_d + 3, 4));
    EXPECT_OK(msa_safetensors_writer_write(writer, a, 0, values_a, 20));
    EXPECT_OK(msa_safetensors_writer_write(writer, b, 0, &scalar, 8));
    EXPECT_OK(msa_safetensors_writer_write(writer, d, 0, values_d, 3));
    EXPECT_OK(msa_safetensors_writer_write(writer, a, 20, values_a + 5, 40));
    assert_int_equal(folder_count(&f), 1); /* the unfinished file */
    EXPECT_OK(msa_safetensors_writer_finish(writer));
    EXPECT_FAIL(MSA_EINVAL, "finished twice", msa_safetensors_writer_finish(writer));
    msa_safetensors_writer_destroy(writer);
    assert_int_equal(folder_count(&f), 1);

    EXPECT_OK(msa_safetensors_open(&file, folder_path(&f, "x.safetensors")));
    assert_int_equal(msa_safetensors_count(file), 4);
    assert_string_equal(msa_safetensors_name(file, 0), "b"); /* wider elements first */
    assert_null(msa_safetensors_name(file, 4));
    assert_null(msa_safetensors_name(file, -1));
    assert_int_equal(msa_safetensors_find(file, "none"), -1);
    EXPECT_OK(msa_safetensors_get(file, msa_safetensors_find(file, "a"), &t));
    assert_int_equal(t.dtype, MSA_DTYPE_F32);
    assert_int_equal(t.n_dims, 2);
    assert_int_equal(t.shape[1], 5);
    assert_memory_equal(t.data, values_a, sizeof(values_a));
    EXPECT_OK(msa_safetensors_get(file, msa_safetensors_find(file, "b"), &t));
    assert_int_equal(t.n_dims, 0);
    assert_memory_equal(t.data, &scalar, 8);
    assert_int_equal((uintptr_t)t.data % 64, 0); /* data begins on a cache line */
    EXPECT_OK(msa_safetensors_get(file, msa_safetensors_find(file, "c"), &t));
    assert_null(t.data);
    assert_int_equal(t.shape[2], 4);
    EXPECT_OK(msa_safetensors_get(file, msa_safetensors_find(file, "d"), &t));
    assert_memory_equal(t.data, values_d, 7);
    EXPECT_FAIL(MSA_EINVAL, "i = 4, must be in 0..3", msa_safetensors_get(file, 4, &t));
    msa_safetensors_close(file);
    folder_remove(&f);
}

static void test_writer_refuses_misuse(void **state)
{
    (void)state;
    folder f = folder_create();
    msa_safetensors_writer *w;
    int64_t a, b;
    const int64_t four[1] = {4}, negative[1] = {-1}, huge[2] = {INT64_MAX, 4};
    EXPECT_FAIL(MSA_EIO, "No such file",
                msa_safetensors_writer_create(&w, "/nowhere/x.safetensors"));
    EXPECT_OK(msa_safetensors_writer_create(&w, folder_path(&f, "x.safetensors")));
    EXPECT_FAIL(MSA_EINVAL, "must be a plain name",
                msa_safetensors_writer_declare(w, "", MSA_DTYPE_U8, 1, four, &a));
    EXPECT_FAIL(MSA_EINVAL, "must be a plain name",
                msa_safetensors_writer_declare(w, "a\"b", MSA_DTYPE_U8, 1, four, &a));
    EXPECT_FAIL(MSA_EINVAL, "must be ASCII",
                msa_safetensors_writer_declare(w, "\xC3\xA9", MSA_DTYPE_U8, 1, four, &a));
    EXPECT_FAIL(MSA_EINVAL, "dtype = 99", msa_safetensors_writer_declare(w, "a", 99, 1, four, &a));
    EXPECT_FAIL(MSA_EINVAL, "n_dims = 5",
                msa_safetensors_writer_declare(w, "a", MSA_DTYPE_U8, 5, four, &a));
    EXPECT_FAIL(MSA_EINVAL, "shape[0] = -1",
                msa_safetensors_writer_declare(w, "a", MSA_DTYPE_U8, 1, negative, &a));
    EXPECT_FAIL(MSA_EINVAL, "shape[0] = 9223372036854775807, out of range",
                msa_safetensors_writer_declare(w, "a", MSA_DTYPE_F32, 2, huge, &a));
    EXPECT_OK(msa_safetensors_writer_declare(w, "a", MSA_DTYPE_U8, 1, four, &a));
    EXPECT_FAIL(MSA_EINVAL, "index = 1, must be in 0..0",
                msa_safetensors_writer_write(w, 1, 0, "", 0));
    EXPECT_FAIL(MSA_EINVAL, "offset = 2 and 3 bytes, it has 4 bytes",
                msa_safetensors_writer_write(w, a, 2, "xyz", 3));
    EXPECT_FAIL(MSA_EINVAL, "offset = -1", msa_safetensors_writer_write(w, a, -1, "x", 1));
    EXPECT_OK(msa_safetensors_writer_write(w, a, 2, "xy", 2));
    EXPECT_FAIL(MSA_EINVAL, "b declared after the first write",
                msa_safetensors_writer_declare(w, "b", MSA_DTYPE_U8, 1, four, &b));
    EXPECT_FAIL(MSA_EINVAL, "a: 2 of 4 bytes were written", msa_safetensors_writer_finish(w));
    msa_safetensors_writer_destroy(w);
    assert_int_equal(folder_count(&f), 0);

    EXPECT_OK(msa_safetensors_writer_create(&w, folder_path(&f, "x.safetensors")));
    EXPECT_OK(msa_safetensors_writer_declare(w, "a", MSA_DTYPE_U8, 1, four, &a));
    EXPECT_OK(msa_safetensors_writer_declare(w, "a", MSA_DTYPE_U8, 1, four, &b));
    EXPECT_FAIL(MSA_EINVAL, "a declared twice", msa_safetensors_writer_write(w, a, 0, "wxyz", 4));
    msa_safetensors_writer_destroy(w);
    folder_remove(&f);
}

static void test_file_without_tensors(void **state)
{
    (void)state;
    folder f = folder_create();
    msa_safetensors_writer *w;
    msa_safetensors *file;
    EXPECT_OK(msa_safetensors_writer_create(&w, folder_path(&f, "x.safetensors")));
    EXPECT_OK(msa_safetensors_writer_finish(w));
    msa_safetensors_writer_destroy(w);
    EXPECT_OK(msa_safetensors_open(&file, folder_path(&f, "x.safetensors")));
    assert_int_equal(msa_safetensors_count(file), 0);
    assert_int_equal(msa_safetensors_find(file, "a"), -1);
    msa_safetensors_close(file);
    folder_remove(&f);
}

/* ---- hostile files
 * ----------------------------------------------------------------------------------- */

/* A file in memory: header length, header, n_data bytes; exactly as long as it is. */
static unsigned char *make_file(const char *header, size_t n_data, size_t *bytes)
{
    size_t n = strlen(header);
    *bytes = 8 + n + n_data;
    unsigned char *file = calloc(1, *bytes);
    assert_non_null(file);
    for (int i = 0; i < 8; i++) file[i] = (unsigned char)(n >> (8 * i) & 0xff);
    memcpy(file + 8, header, n);
    return file;
}

static msa_status open_text(const char *header, size_t n_data, msa_safetensors **file,
                            unsigned char **memory)
{
    size_t bytes;
    *memory = make_file(header, n_data, &bytes);
    return msa__safetensors_from_memory(file, &msa__default_allocator, "x", *memory, bytes);
}

static void test_wrong_headers_are_refused(void **state)
{
    (void)state;
    static const struct {
        const char *header, *message;
        size_t n_data;
    } cases[] = {
        {"[]", "must be an object", 0},
        {"{", "expected a key", 0},
        {"{\"a\":1}", "a = 1, must be an object", 0},
        {"{\"a\":{\"shape\":[1],\"data_offsets\":[0,1]}}", "a.dtype is missing", 1},
        {"{\"a\":{\"dtype\":1,\"shape\":[1],\"data_offsets\":[0,1]}}", "must be a string", 1},
        {"{\"a\":{\"dtype\":\"U8\",\"data_offsets\":[0,1]}}", "a.shape is missing", 1},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":1,\"data_offsets\":[0,1]}}", "must be an array", 1},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1]}}", "a.data_offsets is missing", 1},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0]}}", "must be [begin, end]",
         1},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[1,0]}}",
         "a.data_offsets[1] = 0, must be an integer in 1..", 1},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[-1,0]}}", "= -1, must be", 1},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[-1],\"data_offsets\":[0,1]}}", "= -1, must be", 1},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1.0],\"data_offsets\":[0,1]}}", "= 1.0, must be", 1},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]}}",
         "tensor a: data ends at 2, the file has 1 bytes of data", 1},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,7]}}",
         "data_offsets span 7 bytes, dtype and shape need 8", 7},
        {"{\"a\":{\"dtype\":\"F4\",\"shape\":[3],\"data_offsets\":[0,1]}}", "need 2", 1},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,0]}}",
         "the product of its shape overflows", 0},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[0,4294967296,4294967296],\"data_offsets\":[0,0]}}",
         "the product of its shape overflows", 0},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]},"
         "\"b\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[1,3]}}",
         "tensor b: overlaps another tensor", 3},
        {"{\"b\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[3,5]},"
         "\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]}}",
         "tensor b: data before it belongs to no tensor", 5},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]}}",
         "5 bytes of data, its tensors cover 2", 5},
        {"{}", "1 bytes of data, its tensors cover 0", 1},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},"
         "\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}",
         "key \"a\" appears twice", 1},
        {"{\"a\\u0000b\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}",
         "its name must not contain U+0000", 1},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        msa_safetensors *file;
        unsigned char *memory;
        EXPECT_FAIL(MSA_EFORMAT, cases[i].message,
                    open_text(cases[i].header, cases[i].n_data, &file, &memory));
        assert_null(file);
        free(memory);
    }
}

static void test_header_length_is_bounded(void **state)
{
    (void)state;
    static const uint64_t lengths[] = {3, 100000001, UINT64_MAX, INT64_MAX};
    for (size_t i = 0; i < 4; i++) {
        unsigned char bytes[10] = {0};
        msa_safetensors *file;
        for (int k = 0; k < 8; k++) bytes[k] = (unsigned char)(lengths[i] >> (8 * k));
        EXPECT_FAIL(MSA_EFORMAT, "and end inside the file of 10 bytes",
                    msa__safetensors_from_memory(&file, &msa__default_allocator, "x", bytes, 10));
    }
}

/* What we cannot view is refused when it is asked for, by name, and does no harm before. */
static void test_unusable_tensors_are_refused_when_asked_for(void **state)
{
    (void)state;
    static const char header[] =
        "{\"__metadata__\":{\"format\":\"pt\"},"
        "\"bool\":{\"dtype\":\"BOOL\",\"shape\":[1],\"data_offsets\":[0,1]},"
        "\"odd\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[1,5]},"
        "\"deep\":{\"dtype\":\"U8\",\"shape\":[1,1,1,1,1],\"data_offsets\":[5,6]},"
        "\"new\":{\"dtype\":\"Q7\",\"shape\":[9],\"data_offsets\":[6,7]},"
        "\"scale\":{\"dtype\":\"F8_E8M0\",\"shape\":[1],\"data_offsets\":[7,8]}}  ";
    msa_safetensors *file;
    unsigned char *memory;
    msa_tensor t;
    EXPECT_OK(open_text(header, 8, &file, &memory));
    assert_int_equal(msa_safetensors_count(file), 5);
    EXPECT_FAIL(MSA_EUNSUPPORTED, "x: tensor bool: dtype BOOL is not supported",
                msa_safetensors_get(file, msa_safetensors_find(file, "bool"), &t));
    EXPECT_FAIL(MSA_EUNSUPPORTED, "tensor odd: data not aligned",
                msa_safetensors_get(file, msa_safetensors_find(file, "odd"), &t));
    EXPECT_FAIL(MSA_EUNSUPPORTED, "tensor deep: 5 dimensions, at most 4",
                msa_safetensors_get(file, msa_safetensors_find(file, "deep"), &t));
    EXPECT_FAIL(MSA_EUNSUPPORTED, "tensor new: dtype Q7 is not supported",
                msa_safetensors_get(file, msa_safetensors_find(file, "new"), &t));
    EXPECT_OK(msa_safetensors_get(file, msa_safetensors_find(file, "scale"), &t));
    assert_int_equal(t.dtype, MSA_DTYPE_U8);
    msa_safetensors_close(file);
    free(memory);
}

static void expect_every_cut_refused(const unsigned char *bytes, size_t n, size_t step)
{
    for (size_t cut = 0; cut < n; cut += step) {
        unsigned char *copy = malloc(cut ? cut : 1); /* exact size, for the sanitizer */
        msa_safetensors *file;
        assert_non_null(copy);
        memcpy(copy, bytes, cut);
        msa_status status =
            msa__safetensors_from_memory(&file, &msa__default_allocator, "cut", copy, cut);
        assert_int_equal(status, MSA_EFORMAT);
        assert_non_null(strstr(msa_last_error(), "cut: "));
        free(copy);
    }
}

static void test_truncated_files_are_refused(void **state)
{
    (void)state;
    static const char header[] = "{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]},"
                                 "\"b\":{\"dtype\":\"U8\",\"shape\":[9],\"data_offsets\":[2,11]}}";
    size_t n;
    unsigned char *memory = make_file(header, 11, &n);
    expect_every_cut_refused(memory, n, 1);
    free(memory);
    char path[512];
    snprintf(path, sizeof(path), "%s/model.safetensors", golden_model_dir("tiny-a"));
    char *golden = read_whole_file(path, &n);
    expect_every_cut_refused((unsigned char *)golden, n < 65536 ? n : 65536, 64);
    expect_every_cut_refused((unsigned char *)golden, n, 64 * 101);
    free(golden);
}

/* As many tensors as M3's MXFP8 release has. */
static void test_many_tensors(void **state)
{
    (void)state;
    enum { N = 45838 };
    size_t room = (size_t)N * 160, used = 0;
    char *header = malloc(room), name[64];
    assert_non_null(header);
    for (int i = 0; i < N; i++) {
        used += (size_t)snprintf(header + used, room - used,
                                 "%s\"layers.%d.experts.%d.w\":{\"dtype\":\"U8\",\"shape\":[1,1],"
                                 "\"data_offsets\":[%d,%d]}",
                                 i ? "," : "{", i / 128, i % 128, i, i + 1);
    }
    strcpy(header + used, "}");
    msa_safetensors *file;
    unsigned char *memory;
    EXPECT_OK(open_text(header, N, &file, &memory));
    assert_int_equal(msa_safetensors_count(file), N);
    for (int i = 0; i < N; i += 37) {
        snprintf(name, sizeof(name), "layers.%d.experts.%d.w", i / 128, i % 128);
        assert_int_equal(msa_safetensors_find(file, name), i);
    }
    msa_safetensors_close(file);
    free(memory);
    free(header);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_written_tensors_are_read),
        cmocka_unit_test(test_writer_refuses_misuse),
        cmocka_unit_test(test_file_without_tensors),
        cmocka_unit_test(test_wrong_headers_are_refused),
        cmocka_unit_test(test_header_length_is_bounded),
        cmocka_unit_test(test_unusable_tensors_are_refused_when_asked_for),
        cmocka_unit_test(test_truncated_files_are_refused),
        cmocka_unit_test(test_many_tensors),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
