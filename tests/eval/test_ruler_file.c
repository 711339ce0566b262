/* RULER's files: what a line may hold, how it is scored, what is refused and where. */
#include "harness/cmocka_all.h"
#include "model/folder.h"

#include "eval/ruler_file.h"

#include <stdio.h>
#include <stdlib.h>

static msa_tokenizer *tokenizer;

static int open_tokenizer(void **state)
{
    (void)state;
    char dir[4096];
    snprintf(dir, sizeof(dir), "%s/tests/golden/data/tokenizer/bpe-1k", getenv("MSA_SOURCE_DIR"));
    return msa_tokenizer_open(&tokenizer, dir);
}

static int close_tokenizer(void **state)
{
    (void)state;
    msa_tokenizer_close(tokenizer);
    return 0;
}

static msa_ruler_file *read_text(const char *name, const char *text)
{
    msa_ruler_file *file;
    EXPECT_OK(msa__ruler_read(&file, name, text, strlen(text), tokenizer));
    return file;
}

static void test_lines(void **state)
{
    (void)state;
    msa_ruler_file *file = read_text(
        "samples.jsonl", "{\"index\": 3, \"input\": \"What?\", \"outputs\": [\"a\", \"b\\u00e9\"], "
                         "\"length\": 77, \"others\": {\"x\": [1]}}\r\n"
                         "\n  \n"
                         "{\"input\": \"Say\", \"answer_prefix\": \" it:\", \"outputs\": [\"c\"]}");
    msa__ruler_sample sample;
    assert_int_equal(file->n_lines, 2);
    EXPECT_OK(msa__ruler_sample_get(file, 0, &sample));
    assert_string_equal(sample.input, "What?");
    assert_string_equal(sample.prefix, "");
    assert_int_equal(sample.n_outputs, 2);
    assert_string_equal(sample.outputs[1], "b\xc3\xa9");
    msa__ruler_sample_free(&sample);
    EXPECT_OK(msa__ruler_sample_get(file, 1, &sample));
    assert_string_equal(sample.prefix, " it:");
    msa__ruler_sample_free(&sample);
    msa_ruler_close(file);
}

/* The allowance and the rule come from the line's task, else from the names of file and folder. */
static void test_kinds(void **state)
{
    (void)state;
    static const struct {
        const char *path, *task;
        int32_t answer_tokens, any_one;
    } cases[] = {
        {"samples.jsonl", "", 128, 0},
        {"samples.jsonl", "qa_2", 32, 1},
        {"samples.jsonl", "vt", 30, 0},
        {"samples.jsonl", "something", 128, 0},
        {"data/qa_1/validation.jsonl", "", 32, 1},
        {"data/qa_1/validation.jsonl", "cwe", 120, 0},
        {"qa_1/cwe.jsonl", "", 120, 0},
        {"/fwe_8k.jsonl", "", 50, 0},
        {"qa/data/validation.jsonl", "", 128, 0},
        {"qaz/vtx.jsonl", "", 128, 0},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        char line[256];
        const char *task = cases[i].task;
        msa__ruler_sample sample;
        snprintf(line, sizeof(line), "{\"input\": \"x\", \"outputs\": [\"y\"]%s%s%s}",
                 *task ? ", \"task\": \"" : "", task, *task ? "\"" : "");
        msa_ruler_file *file = read_text(cases[i].path, line);
        EXPECT_OK(msa__ruler_sample_get(file, 0, &sample));
        assert_int_equal(sample.kind->answer_tokens, cases[i].answer_tokens);
        assert_int_equal(sample.kind->any_one, cases[i].any_one);
        msa__ruler_sample_free(&sample);
        msa_ruler_close(file);
    }
}

static void test_wrong_lines(void **state)
{
    (void)state;
    static const struct {
        const char *text, *message;
    } cases[] = {
        {"", "f.jsonl: must hold at least one line"},
        {"\n \n", "f.jsonl: must hold at least one line"},
        {"{\"input\": \"a\", \"outputs\": [\"b\"]}\n{\"input\": ", "f.jsonl:2: "},
        {"[]", "f.jsonl:1: "},
        {"\n{\"outputs\": [\"b\"]}", "f.jsonl:2: input is missing"},
        {"{\"input\": \"a\"}", "f.jsonl:1: outputs is missing"},
        {"{\"input\": 7, \"outputs\": [\"b\"]}", "f.jsonl:1: input = 7, must be a string"},
        {"{\"input\": \"\", \"outputs\": [\"b\"]}", "input is empty"},
        {"{\"input\": \"a\", \"outputs\": \"b\"}", "f.jsonl:1: outputs"},
        {"{\"input\": \"a\", \"outputs\": []}", "must hold at least one string"},
        {"{\"input\": \"a\", \"outputs\": [\"b\", 5]}", "f.jsonl:1: outputs[1] = 5"},
        {"{\"input\": \"a\\u0000b\", \"outputs\": [\"b\"]}", "f.jsonl:1: input"},
        {"{\"input\": \"a\", \"outputs\": [\"b\"], \"task\": 1}", "f.jsonl:1: task"},
        {"{\"input\": \"\xff\", \"outputs\": [\"b\"]}", "f.jsonl:1: "},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        msa_ruler_file *file;
        const char *text = cases[i].text;
        EXPECT_FAIL(MSA_EFORMAT, cases[i].message,
                    msa__ruler_read(&file, "f.jsonl", text, strlen(text), tokenizer));
        assert_null(file);
    }
}

static void test_opened_file(void **state)
{
    (void)state;
    folder f = folder_create();
    const char *text = "{\"input\": \"one two three\", \"outputs\": [\"b\"], \"task\": \"vt\"}\n";
    msa_ruler_file *file;
    msa_ruler_info info;
    int64_t n_tokens;
    folder_write(&f, "t.jsonl", text, strlen(text));
    folder_write(&f, "empty.jsonl", "", 0);
    EXPECT_OK(msa_ruler_open(&file, folder_path(&f, "t.jsonl"), tokenizer));
    msa_ruler_info_init(&info);
    EXPECT_OK(msa_ruler_get_info(file, &info));
    EXPECT_OK(msa_tokenizer_count(tokenizer, "one two three", 13, &n_tokens));
    assert_int_equal(info.n_samples, 1);
    assert_int_equal(info.max_tokens, n_tokens + 30);
    msa_ruler_close(file);
    msa_ruler_close(NULL);
    EXPECT_FAIL(MSA_EFORMAT, "at least one line",
                msa_ruler_open(&file, folder_path(&f, "empty.jsonl"), tokenizer));
    EXPECT_FAIL(MSA_EIO, "none.jsonl",
                msa_ruler_open(&file, folder_path(&f, "none.jsonl"), tokenizer));
    EXPECT_FAIL(MSA_EINVAL, "must not be NULL", msa_ruler_open(&file, NULL, tokenizer));
    EXPECT_FAIL(MSA_EINVAL, "must be open", msa_ruler_get_info(NULL, &info));
    folder_remove(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_lines),
        cmocka_unit_test(test_kinds),
        cmocka_unit_test(test_wrong_lines),
        cmocka_unit_test(test_opened_file),
    };
    return cmocka_run_group_tests(tests, open_tokenizer, close_tokenizer);
}
