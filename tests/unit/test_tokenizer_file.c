/* What is refused in a tokenizer.json, and that running out of memory is an error. */
#define _POSIX_C_SOURCE 200809L
#include "harness/cmocka_all.h"
#include "harness/failing_malloc.h"
#include "unit/tokenizer_fixture.h"

#include "model/pattern.h"

#include <stdio.h>
#include <stdlib.h>

static void expect_refused(tokenizer_parts parts, msa_status code, const char *message)
{
    msa_tokenizer *t;
    char *text = tokenizer_text(&parts);
    EXPECT_FAIL(code, message, tokenizer_from_text(&t, text, strlen(text)));
    assert_null(t);
    msa_free(text);
}

static void test_vocabulary(void **state)
{
    (void)state;
#define TOKENS(text, code, message)                                                                \
    expect_refused((tokenizer_parts){.tokens = (text)}, (code), (message))
    TOKENS("\"ab\":97", MSA_EFORMAT, "model.vocab.ab = 97, must be the only token of its id");
    TOKENS("\"ab\":-1", MSA_EFORMAT, "model.vocab.ab = -1, must be an integer in 0..");
    TOKENS("\"ab\":2097152", MSA_EFORMAT, "must be an integer in 0..2097151");
    TOKENS("\"ab\":99999999999999999999", MSA_EFORMAT, "must be an integer");
    TOKENS("\"ab\":1.5", MSA_EFORMAT, "must be an integer");
    TOKENS("\"ab\":\"256\"", MSA_EFORMAT, "must be an integer");
    TOKENS("\"\":256", MSA_EFORMAT, "must not be empty");
    TOKENS("\"ab\":256,\"ab\":257", MSA_EFORMAT, "appears twice");
}

static void test_every_byte_needs_a_token(void **state)
{
    (void)state;
    msa_tokenizer *t;
    tokenizer_parts parts = {0};
    char *text = tokenizer_text(&parts);
    char *member = strstr(text, "\"a\":97,");
    assert_non_null(member);
    memmove(member, member + 7, strlen(member + 7) + 1);
    EXPECT_FAIL(MSA_EFORMAT, "model.vocab", tokenizer_from_text(&t, text, strlen(text)));
    EXPECT_FAIL(MSA_EFORMAT, "byte 97", tokenizer_from_text(&t, text, strlen(text)));
    msa_free(text);
}

static void test_merges(void **state)
{
    (void)state;
#define MERGES(text, message)                                                                      \
    expect_refused((tokenizer_parts){.tokens = "\"ab\":256", .merges = (text)}, MSA_EFORMAT,       \
                   message)
    MERGES("\"ab\"", "model.merges[0] = \"ab\", must be two tokens");
    MERGES("\"a b c\"", "must be two tokens");
    MERGES("[\"a\"]", "must be two tokens");
    MERGES("[\"a\",\"b\",\"c\"]", "must be two tokens");
    MERGES("7", "must be two tokens");
    MERGES("[\"a\",1]", "model.merges[0][1] = 1, must be a string");
    MERGES("\"a b\",\"x1 b\"", "model.merges[1] = \"x1 b\", its left token must be in model.vocab");
    MERGES("\"a x1\"", "its right token");
    MERGES("\"b a\"", "its product");
    MERGES("\" a\"", "its left token");
}

static void test_added_tokens(void **state)
{
    (void)state;
#define ADDED(text, code, message)                                                                 \
    expect_refused((tokenizer_parts){.added = (text), .normalizer = "{\"type\":\"NFC\"}"}, (code), \
                   (message))
    ADDED("1", MSA_EFORMAT, "added_tokens[0]");
    ADDED("{\"content\":\"x1\"}", MSA_EFORMAT, "added_tokens[0].id is missing");
    ADDED("{\"id\":300}", MSA_EFORMAT, "added_tokens[0].content is missing");
    ADDED("{\"id\":300,\"content\":\"\"}", MSA_EFORMAT, "must have 1 to 512 bytes");
    ADDED("{\"id\":97,\"content\":\"x1\"}", MSA_EFORMAT, "must be the only token of its id");
    ADDED("{\"id\":300,\"content\":\"a\"}", MSA_EFORMAT, "must not repeat the text of token 97");
    ADDED("{\"id\":300,\"content\":\"x1\"},{\"id\":300,\"content\":\"x1\"}", MSA_EFORMAT,
          "added_tokens[1].content");
    ADDED("{\"id\":300,\"content\":\"x1\",\"lstrip\":2}", MSA_EFORMAT, "must be true or false");
    ADDED("{\"id\":300,\"content\":\"e\xCC\x81\",\"normalized\":true}", MSA_EUNSUPPORTED,
          "is normalized and not plain");
}

static void test_unsupported_parts(void **state)
{
    (void)state;
#define NORMALIZER(text, message)                                                                  \
    expect_refused((tokenizer_parts){.normalizer = (text)}, MSA_EUNSUPPORTED, message)
    NORMALIZER("{\"type\":\"NFKC\"}", "normalizer.type = \"NFKC\", is not supported");
    NORMALIZER(
        "{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"NFC\"},{\"type\":\"Lowercase\"}]}",
        "normalizer.normalizers[1].type = \"Lowercase\"");
#define PRE_TOKENIZER(text, message)                                                               \
    expect_refused((tokenizer_parts){.pre_tokenizer = (text)}, MSA_EUNSUPPORTED, message)
    PRE_TOKENIZER("null", "pre_tokenizer = null, must end in ByteLevel");
    PRE_TOKENIZER("{\"type\":\"Metaspace\"}", "\"Metaspace\"");
    PRE_TOKENIZER("{\"type\":\"Sequence\",\"pretokenizers\":[]}", "must end in ByteLevel");
    PRE_TOKENIZER("{\"type\":\"Sequence\",\"pretokenizers\":[" BARE_BYTE_LEVEL "," BARE_BYTE_LEVEL
                  "]}",
                  "pretokenizers[1]");
    PRE_TOKENIZER("{\"type\":\"Split\",\"pattern\":{\"Regex\":\"a\"},\"behavior\":\"Removed\"}",
                  "behavior = \"Removed\"");
    PRE_TOKENIZER("{\"type\":\"Split\",\"pattern\":{\"Regex\":\"a\"},\"behavior\":\"Isolated\","
                  "\"invert\":true}",
                  "invert");
    expect_refused((tokenizer_parts){.decoder = "{\"type\":\"WordPiece\"}"}, MSA_EUNSUPPORTED,
                   "decoder.type = \"WordPiece\"");
    expect_refused((tokenizer_parts){.model = "\"dropout\":0.1,"}, MSA_EUNSUPPORTED,
                   "model.dropout = 0.1");
    expect_refused((tokenizer_parts){.model = "\"continuing_subword_prefix\":\"##\","},
                   MSA_EUNSUPPORTED, "model.continuing_subword_prefix");
    expect_refused((tokenizer_parts){.model = "\"end_of_word_suffix\":\"</w>\","}, MSA_EUNSUPPORTED,
                   "end_of_word_suffix");
}

static void test_harmless_parts(void **state)
{
    (void)state;
    msa_tokenizer_close(tokenizer_from_parts((tokenizer_parts){
        .model = "\"dropout\":0.0,\"unk_token\":\"\",\"end_of_word_suffix\":\"\",\"fuse_unk\":true,"
                 "\"byte_fallback\":true,\"continuing_subword_prefix\":null,",
        .decoder = "{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"ByteLevel\"}]}",
        .normalizer = "{\"type\":\"Sequence\",\"normalizers\":[]}"}));
}

static void test_malformed_documents(void **state)
{
    (void)state;
    static const struct {
        const char *text, *message;
    } cases[] = {
        {"", "tokenizer.json: "},
        {"[]", "must be an object"},
        {"{}", "model is missing"},
        {"{\"model\":3}", "model = 3, must be an object"},
        {"{\"model\":{}}", "pre_tokenizer is missing"},
        {"{\"model\":{},\"pre_tokenizer\":3}", "pre_tokenizer"},
        {"{\"model\":{},\"pre_tokenizer\":" BARE_BYTE_LEVEL "}", "decoder is missing"},
        {"{\"model\":{},\"pre_tokenizer\":" BARE_BYTE_LEVEL ",\"decoder\":" BARE_BYTE_LEVEL "}",
         "model.vocab is missing"},
        {"{\"model\":{\"vocab\":[]},\"pre_tokenizer\":" BARE_BYTE_LEVEL
         ",\"decoder\":" BARE_BYTE_LEVEL "}",
         "model.vocab"},
        {"{\"model\":{\"vocab\":{}},\"pre_tokenizer\":" BARE_BYTE_LEVEL
         ",\"decoder\":" BARE_BYTE_LEVEL "}",
         "model.merges is missing"},
        {"{\"model\":{\"vocab\":{},\"merges\":[]},\"pre_tokenizer\":" BARE_BYTE_LEVEL
         ",\"decoder\":" BARE_BYTE_LEVEL ",\"added_tokens\":{}}",
         "added_tokens"},
        {"{\"model\":{\"vocab\":{},\"merges\":[]},\"pre_tokenizer\":" BARE_BYTE_LEVEL
         ",\"decoder\":" BARE_BYTE_LEVEL "}",
         "model.vocab"},
    };
    msa_tokenizer *t;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        EXPECT_FAIL(MSA_EFORMAT, cases[i].message,
                    tokenizer_from_text(&t, cases[i].text, strlen(cases[i].text)));
        assert_null(t);
    }
    EXPECT_FAIL(MSA_EUNSUPPORTED, "model.type = \"Unigram\"",
                tokenizer_from_text(&t, "{\"model\":{\"type\":\"Unigram\"}}", 28));
}

/* ---- patterns ----------------------------------------------------------------------------- */

static void test_refused_patterns(void **state)
{
    (void)state;
    static const char *const cases[][2] = {
        {"^a", "an anchor at byte 0"},
        {"a$", "an anchor at byte 1"},
        {"\\b", "\\b at byte 0"},
        {"\\h", "\\h"},
        {"\\1", "\\1"},
        {"a\\", "a backslash at the end"},
        {"[a[b]]", "a class inside a class"},
        {"[[:alpha:]]", "a class inside a class"},
        {"[a&&b]", "intersection"},
        {"[]a]", "an empty class"},
        {"[a", "without end"},
        {"[\\W]", "\\W in a class"},
        {"\\pL", "without braces"},
        {"\\p{", "without braces"},
        {"\\p{}", "a property name"},
        {"a{,3}", "{,n}"},
        {"a{2}?", "{n}?"},
        {"a{2,3}+", "{n,m}+"},
        {"(?m:.)", "a special group"},
        {"a(?i)b", "a special group"},
        {"(?<n>a)", "a special group"},
        {"(*ANY)a", "a special group"},
        {"\\x", "a short \\x"},
        {"\\xff", "a raw byte"},
        {"\\x{}", "a malformed"},
        {"\\x{12", "a malformed"},
        {"\\u12", "a short"},
        {"(a", "missing"},
        {"a**)", "pre_tokenizer pattern"},
        {"\\p{NoSuchScript}", "pre_tokenizer pattern"},
        {"a{70000}", "pre_tokenizer pattern"},
        {"\\x{110000}", "pre_tokenizer pattern"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        msa__pattern *pattern;
        EXPECT_FAIL(MSA_EUNSUPPORTED, cases[i][1],
                    msa__pattern_create(&pattern, cases[i][0], strlen(cases[i][0]), 0));
        assert_null(pattern);
    }
}

/* The first match of a pattern must be text[begin, end). */
static void expect_match(const char *regex, const char *text, size_t begin, size_t end)
{
    msa__pattern *pattern;
    msa__matcher *matcher;
    msa__matches m = {0};
    EXPECT_OK(msa__pattern_create(&pattern, regex, strlen(regex), 0));
    EXPECT_OK(msa__matcher_create(&matcher));
    EXPECT_OK(msa__pattern_next(pattern, matcher, text, strlen(text), &m));
    assert_int_equal(m.done, begin == end);
    if (begin < end) assert_int_equal(m.begin, begin);
    if (begin < end) assert_int_equal(m.end, end);
    msa__matcher_destroy(matcher);
    msa__pattern_destroy(pattern);
}

static void test_translated_patterns(void **state)
{
    (void)state;
    expect_match("\\w+", "-a_1\xCC\x81\xE2\x80\xBF-", 1, 9); /* a mark and an undertie are words */
    expect_match("[\\w-]+", "(a-b)", 1, 4);
    expect_match("\\W", "a\xC2\xB2", 1, 3); /* superscript two: N, but no word */
    expect_match("\\v", "a\n\v", 2, 3);
    expect_match("\\u00e9|\\x{e8}|\\x41", "xA\xC3\xA9", 1, 2);
    expect_match("\\p{Han}+", "a\xE6\x97\xA5", 1, 4);
    expect_match("\\p{Greek}", "\xCD\x82", 0,
                 0); /* U+0342: an inherited mark, Greek by extension */
    expect_match("\\p{^Lu}", "Aa", 1, 2);
    expect_match("a{2}", "caaa", 1, 3);
    expect_match("a{x", "a{x", 0, 3);
    expect_match("(?i)'S", "x's", 1, 3);
    expect_match(".", "\n\r", 1, 2); /* only LF is a line's end */
    expect_match("[\\]\\-\\[]+", "a[-]", 1, 4);
}

static void test_endless_patterns_give_an_error(void **state)
{
    (void)state;
    static const char *const patterns[] = {"(?:a+)+b", "(?:a|aa)+b", "(?:a*)*b", "(?=(?:a+)+b)c"};
    char text[4001];
    memset(text, 'a', 4000);
    text[4000] = '\0';
    for (size_t i = 0; i < sizeof(patterns) / sizeof(patterns[0]); i++) {
        char split[400];
        int32_t *ids;
        size_t n;
        (void)snprintf(split, sizeof(split),
                       "{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\",\"pattern\":{"
                       "\"Regex\":\"[^a]|%s\"},\"behavior\":\"Isolated\"}," BARE_BYTE_LEVEL "]}",
                       patterns[i]);
        msa_tokenizer *t = tokenizer_from_parts((tokenizer_parts){.pre_tokenizer = split});
        EXPECT_FAIL(MSA_EUNSUPPORTED, "too many steps",
                    msa_tokenizer_encode(t, text, 4000, &ids, &n));
        assert_null(ids);
        msa_tokenizer_close(t);
    }
}

/* ---- out of memory ------------------------------------------------------------------------ */

static void test_oom_tokenizer(void **state)
{
    (void)state;
    tokenizer_parts parts = {.tokens = "\"ab\":256,\"aa\":257",
                             .merges = "\"a b\",[\"a\",\"a\"]",
                             .added = "{\"id\":300,\"content\":\"<x>\"}",
                             .normalizer = "{\"type\":\"NFC\"}",
                             .pre_tokenizer = "{\"type\":\"ByteLevel\",\"add_prefix_space\":true}"};
    char *json = tokenizer_text(&parts), text[512];
    int64_t n_failures = 0;
    memset(text, 'a', sizeof(text));
    memcpy(text, "<x>o\xCC\x81", 6);
    for (int64_t n = 1;; n++, n_failures++) {
        msa_tokenizer *t;
        int32_t *ids = NULL;
        size_t n_ids, bytes;
        char *decoded = NULL;
        failing_malloc_begin(n);
        msa_status status = tokenizer_from_text(&t, json, strlen(json));
        if (status == MSA_OK) status = msa_tokenizer_encode(t, text, sizeof(text), &ids, &n_ids);
        if (status == MSA_OK) status = msa_tokenizer_decode(t, ids, n_ids, &decoded, &bytes);
        int failed = failing_malloc_end();
        msa_free(decoded);
        msa_free(ids);
        msa_tokenizer_close(t);
        if (!failed) {
            assert_int_equal(status, MSA_OK);
            break;
        }
        /* PCRE2's JIT compiler may do without some of its memory. */
        if (status != MSA_OK) assert_int_equal(status, MSA_ENOMEM);
    }
    assert_in_range(n_failures, 20, 200);
    msa_free(json);
}

static void test_oom_chat(void **state)
{
    (void)state;
    static const char request[] =
        "{\"messages\":[{\"role\":\"assistant\",\"content\":\"<mm:think>a</mm:think>b\","
        "\"tool_calls\":[{\"name\":\"f\",\"arguments\":{\"x\":1.5}}]}],"
        "\"tools\":[{\"function\":{\"a\":[1e5,\"\\n\"]}}]}";
    int64_t n_failures = 0;
    for (int64_t n = 1;; n++, n_failures++) {
        char *text;
        size_t bytes;
        failing_malloc_begin(n);
        msa_status status = msa_chat_render(request, sizeof(request) - 1, &text, &bytes);
        int failed = failing_malloc_end();
        msa_free(text);
        assert_int_equal(status, failed ? MSA_ENOMEM : MSA_OK);
        if (!failed) break;
    }
    assert_in_range(n_failures, 5, 100);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_vocabulary),
        cmocka_unit_test(test_every_byte_needs_a_token),
        cmocka_unit_test(test_merges),
        cmocka_unit_test(test_added_tokens),
        cmocka_unit_test(test_unsupported_parts),
        cmocka_unit_test(test_harmless_parts),
        cmocka_unit_test(test_malformed_documents),
        cmocka_unit_test(test_refused_patterns),
        cmocka_unit_test(test_translated_patterns),
        cmocka_unit_test(test_endless_patterns_give_an_error),
        cmocka_unit_test(test_oom_tokenizer),
        cmocka_unit_test(test_oom_chat),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
