/* JSON documents: what is accepted, what is refused and how the message reads. */
#include "harness/cmocka_all.h"

#include "model/json.h"

#include <stdio.h>
#include <stdlib.h>

static const msa__json *parse(const char *text)
{
    const msa__json *root;
    EXPECT_OK(msa__json_parse(&root, NULL, "test.json", text, strlen(text)));
    return root;
}

static void expect_refused(const char *text, const char *message)
{
    const msa__json *root;
    EXPECT_FAIL(MSA_EFORMAT, message,
                msa__json_parse(&root, NULL, "test.json", text, strlen(text)));
    assert_null(root);
}

static void test_tree_keeps_order_and_spelling(void **state)
{
    (void)state;
    const msa__json *root = parse(" {\"b\":[1.10 ,-0,123456789012345678901234567890,1e5],\"a\":"
                                  "{},\"c\":[],\"d\":[[{}]],\"e\":null,\"f\":true}\n");
    assert_int_equal(root->n_children, 6);
    const msa__json *b = root->child;
    assert_string_equal(b->key, "b");
    assert_int_equal(b->n_children, 4);
    assert_string_equal(b->child->text, "1.10");
    assert_string_equal(b->child->next->text, "-0");
    assert_string_equal(b->child->next->next->text, "123456789012345678901234567890");
    assert_string_equal(b->child->next->next->next->text, "1e5");
    assert_string_equal(b->next->key, "a");
    assert_int_equal(b->next->n_children, 0);
    assert_int_equal(msa__json_get(root, "d")->child->child->type, MSA__JSON_OBJECT);
    assert_int_equal(msa__json_get(root, "e")->type, MSA__JSON_NULL);
    assert_int_equal(msa__json_get(root, "f")->type, MSA__JSON_TRUE);
    assert_null(msa__json_get(root, "g"));
    assert_null(msa__json_get(b, "g"));
    msa__json_free(root);
}

static void test_scalar_documents(void **state)
{
    (void)state;
    const char *good[] = {"1", " -2.5e-3 ", "\"\"", "true", "null", "[]", "{}", "0"};
    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) msa__json_free(parse(good[i]));
}

static void test_strings_are_decoded(void **state)
{
    (void)state;
    const msa__json *root =
        parse("\"\\\"\\\\\\/\\b\\f\\n\\r\\t\\u0041\\u00e9\\u20AC\\ud83d\\ude00\xC3\xA9\\u0000z\"");
    static const char expected[] =
        "\"\\/\b\f\n\r\tA\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80\xC3\xA9\0z";
    assert_int_equal(root->text_bytes, sizeof(expected) - 1);
    assert_memory_equal(root->text, expected, sizeof(expected));
    const char *text;
    EXPECT_FAIL(MSA_EFORMAT, "must not contain U+0000", msa__json_string(root, &text));
    msa__json_free(root);
}

static void test_malformed_texts_are_refused(void **state)
{
    (void)state;
    static const char *const cases[][2] = {
        {"", "line 1 column 1, unexpected end"},
        {"{\"a\":1,\n \"b\" 2}", "test.json: line 2 column 6, expected ':'"},
        {"{\"a\":1,}", "expected a key"},
        {"{1:2}", "expected a key"},
        {"[1,]", "expected a value"},
        {"[1 2]", "expected ',' or ']'"},
        {"{\"a\":1]", "expected ',' or '}'"},
        {"[1", "unexpected end"},
        {"{\"a\":[1,2}", "expected ',' or ']'"},
        {"[1]]", "text behind the value"},
        {"nul", "expected a value"},
        {"NaN", "expected a value"},
        {"01", "malformed number"},
        {"-", "malformed number"},
        {"1.", "malformed number"},
        {".5", "expected a value"},
        {"1e", "malformed number"},
        {"1x", "text behind the value"},
        {"\"abc", "string without end"},
        {"\"abc\\", "unknown escape"},
        {"\"\\x\"", "unknown escape"},
        {"\"\\u12g4\"", "unknown escape"},
        {"\"\\u12", "unknown escape"},
        {"\"a\nb\"", "control character"},
        {"\"\\ud800\"", "half a surrogate pair"},
        {"\"\\ud800\\u0041\"", "half a surrogate pair"},
        {"\"\\udc00\"", "half a surrogate pair"},
        {"\"\xC3\"", "invalid UTF-8"},
        {"\"\xC0\x80\"", "invalid UTF-8"},
        {"\"\xE0\x80\x80\"", "invalid UTF-8"},
        {"\"\xED\xA0\x80\"", "invalid UTF-8"},
        {"\"\xF4\x90\x80\x80\"", "invalid UTF-8"},
        {"\"\xF8\"", "invalid UTF-8"},
        {"\xEF\xBB\xBF{}", "expected a value"},
        {"{\"a\":1,\"b\":2,\"a\":3}", "key \"a\" appears twice"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        expect_refused(cases[i][0], cases[i][1]);
    }
    const msa__json *root;
    EXPECT_FAIL(MSA_EFORMAT, "expected ',' or ']'",
                msa__json_parse(&root, NULL, "test.json", "[1\0]", 4));
}

static void test_duplicate_among_many_keys_is_refused(void **state)
{
    (void)state;
    size_t size = 1 << 20, used = 0;
    char *text = malloc(size);
    text[used++] = '{';
    for (int i = 0; i < 20000; i++) {
        used += (size_t)sprintf(text + used, "\"key-%d\":%d,", i, i);
    }
    strcpy(text + used, "\"last\":0}");
    msa__json_free(parse(text));
    strcpy(text + used, "\"key-777\":0}");
    expect_refused(text, "key \"key-777\" appears twice");
    free(text);
}

static void test_depth_is_bounded(void **state)
{
    (void)state;
    char text[2 * MSA__JSON_MAX_DEPTH + 3];
    memset(text, '[', MSA__JSON_MAX_DEPTH);
    memset(text + MSA__JSON_MAX_DEPTH, ']', MSA__JSON_MAX_DEPTH);
    text[2 * MSA__JSON_MAX_DEPTH] = '\0';
    msa__json_free(parse(text));
    memset(text, '[', MSA__JSON_MAX_DEPTH + 1);
    expect_refused(text, "nested too deeply");
    memset(text, ']', MSA__JSON_MAX_DEPTH);
    expect_refused(text, "expected a value");
}

static void test_number_of_values_is_bounded(void **state)
{
    (void)state;
    size_t bytes = (size_t)MSA__JSON_MAX_VALUES + 1;
    char *text = malloc(bytes);
    memset(text, ',', bytes);
    const msa__json *root;
    EXPECT_FAIL(MSA_EFORMAT, "16777218 values, must be at most 16777216",
                msa__json_parse(&root, NULL, "test.json", text, bytes));
    free(text);
}

static void test_typed_values_name_place_value_and_rule(void **state)
{
    (void)state;
    const msa__json *root = parse("{\"a\":{\"list\":[1,\"two\"],\"real\":1e3,\"big\":99999999999"
                                  "999999999,\"huge\":1e999}}");
    const msa__json *a = msa__json_get(root, "a"), *missing;
    const msa__json *list = msa__json_get(a, "list");
    int32_t number = 0;
    int64_t wide;
    double real;
    const char *text;
    EXPECT_OK(msa__json_int32(list->child, 0, 10, &number));
    assert_int_equal(number, 1);
    EXPECT_FAIL(MSA_EFORMAT, "test.json: a.list[0] = 1, must be an integer in 2..10",
                msa__json_int32(list->child, 2, 10, &number));
    EXPECT_FAIL(MSA_EFORMAT, "a.list[1] = \"two\", must be an integer in 0..10",
                msa__json_int32(list->child->next, 0, 10, &number));
    EXPECT_FAIL(MSA_EFORMAT, "a.real = 1e3, must be an integer",
                msa__json_int64(msa__json_get(a, "real"), 0, INT64_MAX, &wide));
    EXPECT_FAIL(MSA_EFORMAT, "a.big = 99999999999999999999, must be an integer",
                msa__json_int64(msa__json_get(a, "big"), 0, INT64_MAX, &wide));
    EXPECT_FAIL(MSA_EFORMAT, "a.huge = 1e999, must be a finite number",
                msa__json_double(msa__json_get(a, "huge"), &real));
    EXPECT_FAIL(MSA_EFORMAT, "a.list = [2 items], must be a string", msa__json_string(list, &text));
    EXPECT_FAIL(MSA_EFORMAT, "a.real = 1e3, must be true or false",
                msa__json_bool(msa__json_get(a, "real"), &number));
    EXPECT_FAIL(MSA_EFORMAT, "test.json: a.none is missing", msa__json_need(a, "none", &missing));
    EXPECT_FAIL(MSA_EFORMAT, "a.list = [2 items], must be an object",
                msa__json_need(list, "none", &missing));
    EXPECT_OK(msa__json_double(msa__json_get(a, "real"), &real));
    assert_true(real == 1000.0);
    msa__json_free(root);
}

static void test_files_are_checked(void **state)
{
    (void)state;
    const msa__json *root;
    EXPECT_FAIL(MSA_EIO, "/nowhere/x.json: No such file",
                msa__json_read(&root, NULL, "/nowhere", "x.json", 100));
    EXPECT_FAIL(MSA_EIO, "must be a regular file", msa__json_read(&root, NULL, "/", "dev/null", 1));
    EXPECT_FAIL(MSA_EFORMAT, "bytes, must be at most 1",
                msa__json_read(&root, NULL, getenv("MSA_SOURCE_DIR"), "CMakePresets.json", 1));
    EXPECT_OK(msa__json_read(&root, NULL, getenv("MSA_SOURCE_DIR"), "CMakePresets.json", 1 << 20));
    assert_int_equal(root->type, MSA__JSON_OBJECT);
    msa__json_free(root);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tree_keeps_order_and_spelling),
        cmocka_unit_test(test_scalar_documents),
        cmocka_unit_test(test_strings_are_decoded),
        cmocka_unit_test(test_malformed_texts_are_refused),
        cmocka_unit_test(test_duplicate_among_many_keys_is_refused),
        cmocka_unit_test(test_depth_is_bounded),
        cmocka_unit_test(test_number_of_values_is_bounded),
        cmocka_unit_test(test_typed_values_name_place_value_and_rule),
        cmocka_unit_test(test_files_are_checked),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
