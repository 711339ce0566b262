/* The chat prompt: the golden cases, then rules of the specification that they leave out. */
#define _POSIX_C_SOURCE 200809L
#include "harness/cmocka_all.h"

#include "model/json.h"
#include "model/python_text.h"
#include "msa/model.h"

#include <stdio.h>
#include <stdlib.h>

/* ---- golden cases ------------------------------------------------------------------------- */

static char *read_golden(size_t *n)
{
    char path[512];
    (void)snprintf(path, sizeof(path), "%s/tests/golden/data/chat/cases.json",
                   getenv("MSA_SOURCE_DIR"));
    FILE *file = fopen(path, "rb");
    assert_non_null(file);
    char *text = malloc(1 << 20);
    assert_non_null(text);
    *n = fread(text, 1, 1 << 20, file);
    fclose(file);
    return text;
}

/* Length of the JSON object at text: its own source goes to the renderer, numbers as they are
 * spelled. */
static size_t object_length(const char *text)
{
    int depth = 0;
    const char *c = text;
    do {
        if (*c == '"') {
            for (c++; *c != '"'; c++) {
                if (*c == '\\') c++;
            }
        }
        if (*c == '{') depth++;
        if (*c == '}') depth--;
        c++;
    } while (depth);
    return (size_t)(c - text);
}

static void check_case(const msa__json *golden, const char *source, size_t n)
{
    const msa__json *rendered = msa__json_get(golden, "rendered");
    const msa__json *error = msa__json_get(golden, "error");
    char *text;
    size_t text_bytes;
    msa_status status = msa_chat_render(source, n, &text, &text_bytes);
    if (error) {
        assert_int_equal(status, MSA_EINVAL);
        assert_string_equal(msa_last_error(), error->text);
        assert_null(text);
        return;
    }
    if (status != MSA_OK) fail_msg("%s: %s", msa__json_get(golden, "name")->text, msa_last_error());
    assert_string_equal(text, rendered->text);
    assert_int_equal(text_bytes, rendered->text_bytes);
    msa_free(text);
}

static void test_golden(void **state)
{
    (void)state;
    size_t n;
    const msa__json *cases;
    char *text = read_golden(&n);
    EXPECT_OK(msa__json_parse(&cases, NULL, "cases.json", text, n));
    assert_int_equal(cases->n_children, 32);
    const char *at = text;
    MSA__JSON_EACH(golden, cases)
    {
        at = strchr(at, '{');
        size_t length = object_length(at);
        check_case(golden, at, length);
        at += length;
    }
    msa__json_free(cases);
    free(text);
}

/* ---- rules -------------------------------------------------------------------------------- */

/* What follows the developer block of a request must be this. */
static void expect_messages(const char *request, const char *expected)
{
    static const char before[] = "]~b]developer\nYou are a helpful assistant.[e~[\n";
    char *text;
    size_t n;
    EXPECT_OK(msa_chat_render(request, strlen(request), &text, &n));
    const char *messages = strstr(text, before);
    assert_non_null(messages);
    assert_string_equal(messages + strlen(before), expected);
    msa_free(text);
}

static void expect_contains(const char *request, const char *expected)
{
    char *text;
    size_t n;
    EXPECT_OK(msa_chat_render(request, strlen(request), &text, &n));
    if (!strstr(text, expected)) fail_msg("\"%s\" lacks \"%s\"", text, expected);
    msa_free(text);
}

static void expect_refused(const char *request, const char *message)
{
    char *text;
    size_t n;
    EXPECT_FAIL(MSA_EFORMAT, message, msa_chat_render(request, strlen(request), &text, &n));
    assert_null(text);
}

static void test_no_messages(void **state)
{
    (void)state;
    expect_messages("{\"messages\":[]}", "");
    expect_messages("{\"messages\":[],\"tools\":null,\"options\":null,\"other\":1}", "");
    expect_messages("{\"messages\":[],\"options\":{\"add_generation_prompt\":true}}", "]~b]ai\n");
}

static void test_thinking_mode_of_any_type(void **state)
{
    (void)state;
    /* Present but unknown: no mode line. Only absent means adaptive. */
    static const char without_mode[] = "turn.\n</thinking_instructions>";
    expect_contains("{\"messages\":[],\"options\":{\"thinking_mode\":null}}", without_mode);
    expect_contains("{\"messages\":[],\"options\":{\"thinking_mode\":\"\"}}", without_mode);
    expect_contains("{\"messages\":[],\"options\":{\"thinking_mode\":true}}", without_mode);
    expect_contains("{\"messages\":[],\"options\":{}}", "Current thinking mode: adaptive.");
}

static void test_empty_content_falls_back(void **state)
{
    (void)state;
#define LEADING(role, content, options)                                                            \
    "{\"messages\":[{\"role\":\"" role "\",\"content\":" content "}],\"options\":{" options "}}"
    /* model_identity is the default of the developer text: used for an empty one, printed when
     * empty. */
    expect_contains(LEADING("system", "\"\"", "\"model_identity\":\"X\""),
                    "]~b]developer\nX[e~[\n");
    expect_contains(LEADING("system", "\"S\"", "\"model_identity\":\"\""),
                    "]~b]developer\nS[e~[\n");
    expect_contains(LEADING("system", "[]", "\"model_identity\":\"\""), "]~b]developer\n[e~[\n");
    expect_contains(LEADING("system", "null", "\"model_identity\":null"),
                    "]~b]developer\nNone[e~[\n");
    expect_contains(LEADING("root", "\"\"", "\"model_identity\":\"X\""),
                    "]~b]system\nYour model version is MiniMax-M3,");
    /* Parts without text are content all the same. */
    expect_contains(LEADING("developer", "[{\"type\":\"text\",\"text\":\"\"}]", ""),
                    "]~b]developer\n[e~[\n");
    expect_contains(LEADING("root", "[\"\"]", ""), "]~b]system\n\n\n<thinking_instructions>");
}

#define CALL "{\"role\":\"assistant\",\"tool_calls\":[{\"name\":\"f\",\"arguments\":{\"a\":null}}]}"
#define CALLED                                                                                     \
    "]~b]ai\n</mm:think>]<]minimax[>[<tool_call>\n]<]minimax[>[<invoke name=\"f\">]<]minimax[>["   \
    "</invoke>\n]<]minimax[>[</tool_call>[e~[\n"

static void test_tool_results_of_parts(void **state)
{
    (void)state;
    expect_messages("{\"messages\":[" CALL ",{\"role\":\"tool\",\"content\":[{\"type\":\"audio\","
                    "\"output\":\"o\"},{\"output\":\"\",\"type\":\"text\",\"text\":\"loses to an "
                    "empty output\"}]},{\"role\":\"tool\"},{\"role\":\"tool\",\"content\":null}]}",
                    CALLED "]~b]tool\n<response>o</response>\n<response></response>\n<response>"
                           "</response>[e~[\n");
    /* What is no text is printed as Python prints it. */
    expect_messages("{\"messages\":[" CALL ",{\"role\":\"tool\",\"content\":[{\"output\":{\"k\":["
                    "null,true,1.50,\"it's\",\"\\u2028\\n\\\"\\\\\"]}},{\"type\":\"x\"},7,null]}]}",
                    CALLED "]~b]tool\n<response>{'k': [None, True, 1.5, \"it's\", "
                           "'\\u2028\\n\"\\\\']}{'type': 'x'}7None</response>[e~[\n");
    /* The output field means nothing outside of tool messages. */
    expect_messages("{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"output\":"
                    "\"o\",\"text\":\"t\"},{\"output\":\"o\"},7]},{\"role\":\"user\",\"content\":"
                    "{\"a\":false}}]}",
                    "]~b]user\nt[e~[\n]~b]user\n{'a': False}[e~[\n");
}

static void test_a_result_needs_a_call_of_the_last_assistant(void **state)
{
    (void)state;
    static const char request[] =
        "{\"messages\":[" CALL ",{\"role\":\"tool\",\"content\":\"x\"},"
        "{\"role\":\"assistant\",\"content\":\"y\"},{\"role\":\"tool\"}]}";
    char *text;
    size_t n;
    EXPECT_FAIL(MSA_EINVAL, "Message has tool role, but",
                msa_chat_render(request, sizeof(request) - 1, &text, &n));
    expect_messages("{\"messages\":[" CALL ",{\"role\":\"user\"},{\"role\":\"system\"},"
                    "{\"role\":\"tool\",\"content\":\"x\"}]}",
                    CALLED "]~b]user\n[e~[\n]~b]tool\n<response>x</response>[e~[\n");
}

static void test_truth_of_values(void **state)
{
    (void)state;
    static const char *const no[] = {"null", "false", "0", "-0", "0.00", "0e7", "\"\"", "[]", "{}"};
    static const char *const yes[] = {"true", "1", "-0.5", "1e-7", "\"0\"", "[0]", "{\"a\":0}"};
    char request[100];
    for (size_t i = 0; i < sizeof(no) / sizeof(no[0]); i++) {
        (void)snprintf(request, sizeof(request),
                       "{\"messages\":[],\"options\":{\"add_generation_prompt\":%s}}", no[i]);
        expect_messages(request, "");
    }
    for (size_t i = 0; i < sizeof(yes) / sizeof(yes[0]); i++) {
        (void)snprintf(request, sizeof(request),
                       "{\"messages\":[],\"options\":{\"add_generation_prompt\":%s}}", yes[i]);
        expect_messages(request, "]~b]ai\n");
    }
}

static void test_reasoning_content_of_other_types(void **state)
{
    (void)state;
    expect_messages("{\"messages\":[{\"role\":\"assistant\",\"reasoning_content\":7,\"content\":"
                    "\"<mm:think>r</mm:think>c\"}]}",
                    "]~b]ai\n<mm:think>r</mm:think>c[e~[\n");
    expect_messages(
        "{\"messages\":[{\"role\":\"assistant\",\"content\":\"a\\u0000</mm:think>b\"}]}",
        "]~b]ai\n<mm:think>a");
}

static void test_refusals(void **state)
{
    (void)state;
#define MESSAGES(items) "{\"messages\":[" items "]}"
    expect_refused("", "chat request: ");
    expect_refused("[]", "must be an object");
    expect_refused("{}", "messages is missing");
    expect_refused("{\"messages\":{}}", "must be an array");
    expect_refused("{\"messages\":[],\"tools\":{\"a\":1}}", "tools = {");
    expect_refused("{\"messages\":[],\"tools\":[{\"name\":\"f\"}]}",
                   "tools[0].function is missing");
    expect_refused("{\"messages\":[],\"options\":[1]}", "options");
    expect_refused(MESSAGES("1"), "messages[0]");
    expect_refused(MESSAGES("{\"content\":\"x\"}"), "messages[0].role is missing");
    expect_refused(MESSAGES("{\"role\":\"function\"}"), "messages[0].role = \"function\"");
    expect_refused(MESSAGES(CALL ",{\"role\":\"tool\",\"content\":{}}"), "messages[1].content = {");
    expect_refused(MESSAGES("{\"role\":\"assistant\",\"tool_calls\":[{\"name\":\"f\"}]}"),
                   "tool_calls[0].arguments is missing");
    expect_refused(MESSAGES("{\"role\":\"assistant\",\"tool_calls\":[{\"function\":{\"name\":\"f\","
                            "\"arguments\":\"{}\"}}]}"),
                   "function.arguments = \"{}\", must be an object");
    expect_refused(
        MESSAGES("{\"role\":\"assistant\",\"tool_calls\":[{\"name\":1,\"arguments\":{}}]}"),
        "tool_calls[0].name = 1");
    expect_refused(
        MESSAGES("{\"role\":\"assistant\",\"tool_calls\":[{\"name\":\"f\",\"arguments\":{"
                 "\"x\":1e999}}]}"),
        "arguments.x = 1e999");
    expect_refused(MESSAGES("{\"role\":\"user\",\"role\":\"user\"}"), "appears twice");
    char *text;
    size_t n;
    EXPECT_FAIL(MSA_EINVAL, "NULL", msa_chat_render(NULL, 1, &text, &n));
}

static void test_check_of_the_model(void **state)
{
    (void)state;
    char dir[] = "test_chat_XXXXXX", path[64];
    static const struct {
        const char *config, *message;
        msa_status status;
    } cases[] = {{"{\"model_type\":\"minimax_m3_vl\"}", NULL, 0},
                 {"{\"model_type\":\"llama\"}", "model_type = \"llama\"", -4},
                 {"{\"model_type\":3}", "model_type = 3", -4},
                 {"{}", "model_type is missing", -6},
                 {"{", "config.json", -6}};
    assert_non_null(mkdtemp(dir));
    (void)snprintf(path, sizeof(path), "%s/config.json", dir);
    EXPECT_FAIL(MSA_EIO, "config.json", msa_chat_check(dir));
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        FILE *file = fopen(path, "w");
        assert_non_null(file);
        fputs(cases[i].config, file);
        fclose(file);
        if (cases[i].message)
            EXPECT_FAIL(cases[i].status, cases[i].message, msa_chat_check(dir));
        else
            EXPECT_OK(msa_chat_check(dir));
    }
    remove(path);
    remove(dir);
}

/* ---- numbers ------------------------------------------------------------------------------ */

static void expect_number(const char *spelling, const char *expected)
{
    const msa__json *number;
    msa__text out = {0};
    char *text;
    size_t n;
    EXPECT_OK(msa__json_parse(&number, NULL, "number", spelling, strlen(spelling)));
    EXPECT_OK(msa__python_number(&out, number));
    EXPECT_OK(msa__text_finish(&out, &text, &n));
    assert_string_equal(text, expected);
    msa_free(text);
    msa__json_free(number);
}

static void test_numbers(void **state)
{
    (void)state;
    static const char *const cases[][2] = {
        {"0", "0"},
        {"-0", "0"},
        {"-7", "-7"},
        {"123456789012345678901234567890", "123456789012345678901234567890"},
        {"0.0", "0.0"},
        {"-0e9", "-0.0"},
        {"0.0001", "0.0001"},
        {"0.00012345", "0.00012345"},
        {"0.00001", "1e-05"},
        {"12.5e-7", "1.25e-06"},
        {"9999999999999998.0", "9999999999999998.0"},
        {"9999999999999999.0", "1e+16"},
        {"1E16", "1e+16"},
        {"123456789012345680000.0", "1.2345678901234568e+20"},
        {"1e22", "1e+22"},
        {"1e23", "1e+23"},
        {"-1.5E+300", "-1.5e+300"},
        {"9007199254740993.0", "9007199254740992.0"},
        {"5e-324", "5e-324"},
        {"2.4e-324", "0.0"},
        {"1.7976931348623157e308", "1.7976931348623157e+308"},
        {"1e-999999999999999999999", "0.0"},
        {"0.1000000000000000055511151231257827021181583404541015625", "0.1"},
        /* powers of two whose shortest decimal is not the nearest of its length */
        {"5.6843418860808015e-14", "5.684341886080802e-14"},
        {"9.007199254740992e15", "9007199254740992.0"},
        {"1.1102230246251565e-16", "1.1102230246251565e-16"},
        {"9.5367431640625e-7", "9.5367431640625e-07"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        expect_number(cases[i][0], cases[i][1]);
    }
}

static void test_json_escapes(void **state)
{
    (void)state;
    static const char source[] = "[{\"a\\u007f\\u0001\":\"\\u2028\\/\\u00e9\\u0000\"},null,[],{}]";
    const msa__json *value;
    msa__text out = {0};
    char *text;
    size_t n;
    EXPECT_OK(msa__json_parse(&value, NULL, "json", source, strlen(source)));
    EXPECT_OK(msa__python_json(&out, value));
    EXPECT_OK(msa__text_finish(&out, &text, &n));
    assert_string_equal(text,
                        "[{\"a\x7f\\u0001\": \"\xE2\x80\xA8/\xC3\xA9\\u0000\"}, null, [], {}]");
    msa_free(text);
    msa__json_free(value);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden),
        cmocka_unit_test(test_no_messages),
        cmocka_unit_test(test_thinking_mode_of_any_type),
        cmocka_unit_test(test_empty_content_falls_back),
        cmocka_unit_test(test_tool_results_of_parts),
        cmocka_unit_test(test_a_result_needs_a_call_of_the_last_assistant),
        cmocka_unit_test(test_truth_of_values),
        cmocka_unit_test(test_reasoning_content_of_other_types),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_check_of_the_model),
        cmocka_unit_test(test_numbers),
        cmocka_unit_test(test_json_escapes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
