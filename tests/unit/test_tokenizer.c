/* Text to ids and back: the golden cases, then the rules one by one on small tokenizers. */
#include "harness/cmocka_all.h"
#include "unit/tokenizer_fixture.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

/* ---- golden cases ------------------------------------------------------------------------- */

static void check_case(const msa_tokenizer *tokenizer, const msa__json *golden)
{
    const msa__json *text = msa__json_get(golden, "text");
    const msa__json *expected = msa__json_get(golden, "ids");
    const msa__json *decoded = msa__json_get(golden, "decoded");
    int32_t *ids;
    size_t n_ids, n_bytes, i = 0;
    char *bytes;
    EXPECT_OK(msa_tokenizer_encode(tokenizer, text->text, text->text_bytes, &ids, &n_ids));
    assert_int_equal(n_ids, expected->n_children);
    MSA__JSON_EACH(id, expected)
    {
        int32_t value;
        EXPECT_OK(msa__json_int32(id, 0, INT32_MAX, &value));
        assert_int_equal(ids[i++], value);
    }
    EXPECT_OK(msa_tokenizer_decode(tokenizer, ids, n_ids, &bytes, &n_bytes));
    assert_int_equal(n_bytes, decoded->text_bytes);
    assert_memory_equal(bytes, decoded->text, n_bytes);
    msa_free(bytes);
    msa_free(ids);
}

static void check_golden(const char *name, int32_t size)
{
    char dir[512];
    const msa__json *cases;
    msa_tokenizer *tokenizer;
    (void)snprintf(dir, sizeof(dir), "%s/tests/golden/data/tokenizer/%s", getenv("MSA_SOURCE_DIR"),
                   name);
    EXPECT_OK(msa_tokenizer_open(&tokenizer, dir));
    EXPECT_OK(msa__json_read(&cases, NULL, dir, "cases.json", 1 << 24));
    assert_int_equal(cases->n_children, 254);
    /* Twice: what the tokenizer remembers of the first round must not change the second. */
    for (int round = 0; round < 2; round++) {
        MSA__JSON_EACH(golden, cases) check_case(tokenizer, golden);
    }
    assert_int_equal(msa_tokenizer_size(tokenizer), size);
    assert_int_equal(msa_tokenizer_find(tokenizer, "]~b]"), size - 7);
    msa__json_free(cases);
    msa_tokenizer_close(tokenizer);
}

static void test_golden_1k(void **state)
{
    (void)state;
    check_golden("bpe-1k", 1032);
}

static void test_golden_8k(void **state)
{
    (void)state;
    check_golden("bpe-8k", 8200);
}

/* ---- merging ------------------------------------------------------------------------------ */

#define ABC_TOKENS "\"ab\":256,\"bc\":257,\"abc\":258,\"cd\":259,\"abcd\":260"

static void test_lowest_rank_merges_first(void **state)
{
    (void)state;
    msa_tokenizer *t = tokenizer_from_parts((tokenizer_parts){
        .tokens = ABC_TOKENS, .merges = "[\"b\",\"c\"],[\"a\",\"b\"],[\"a\",\"bc\"]"});
    expect_ids(t, "abc", "258");
    expect_ids(t, "ab", "256");
    expect_ids(t, "abab", "256 256");
    msa_tokenizer_close(t);
    /* abc exists, but only "ab" + "c" would make it and "bc" comes first. */
    t = tokenizer_from_parts(
        (tokenizer_parts){.tokens = ABC_TOKENS, .merges = "\"b c\",\"a b\",\"ab c\",\"c d\""});
    expect_ids(t, "abc", "97 257");
    expect_ids(t, "abcd", "97 257 100");
    msa_tokenizer_close(t);
}

static void test_equal_ranks_merge_from_the_left(void **state)
{
    (void)state;
    msa_tokenizer *t = tokenizer_from_parts(
        (tokenizer_parts){.tokens = "\"aa\":256,\"aaa\":257", .merges = "\"a a\",\"aa a\""});
    expect_ids(t, "aaa", "257");
    expect_ids(t, "aaaa", "256 256");
    expect_ids(t, "aaaaa", "256 257");
    msa_tokenizer_close(t);
}

static void test_repeated_merge_takes_the_later_rank(void **state)
{
    (void)state;
    msa_tokenizer *t = tokenizer_from_parts(
        (tokenizer_parts){.tokens = ABC_TOKENS, .merges = "\"a b\",\"b c\",\"a b\""});
    expect_ids(t, "abc", "97 257");
    msa_tokenizer_close(t);
}

static void test_ignore_merges_takes_whole_pieces(void **state)
{
    (void)state;
    tokenizer_parts parts = {.tokens = ABC_TOKENS, .merges = "\"b c\""};
    msa_tokenizer *t = tokenizer_from_parts(parts);
    expect_ids(t, "abcd", "97 257 100");
    msa_tokenizer_close(t);
    parts.model = "\"ignore_merges\":true,";
    t = tokenizer_from_parts(parts);
    expect_ids(t, "abcd", "260");
    expect_ids(t, "abcda", "97 257 100 97");
    msa_tokenizer_close(t);
}

/* The heap and the scan must agree: the same piece is encoded whole and, through added tokens, in
 * the same text cut to fit the scan. */
static void test_long_pieces_merge_like_short_ones(void **state)
{
    (void)state;
    msa_tokenizer *t = tokenizer_from_parts((tokenizer_parts){
        .tokens = ABC_TOKENS, .merges = "\"b c\",\"a b\",\"ab c\",\"c d\",\"ab cd\""});
    char text[49 * 4 + 1], expected[49 * 16] = "";
    for (int i = 0; i < 49; i++) { /* "abcd" ends where no merge reaches the next */
        memcpy(text + 4 * i, "abcd", 5);
        strcat(expected, i ? " 97 257 100" : "97 257 100");
    }
    expect_ids(t, text, expected);
    expect_ids_n(t, text, 12 * 4,
                 "97 257 100 97 257 100 97 257 100 97 257 100 97 257 100 97 257 "
                 "100 97 257 100 97 257 100 97 257 100 97 257 100 97 257 100 97 "
                 "257 100");
    msa_tokenizer_close(t);
}

static void test_two_million_letters_in_a_row(void **state)
{
    (void)state;
    enum { N = 2000000 };
    msa_tokenizer *t =
        tokenizer_from_parts((tokenizer_parts){.tokens = "\"aa\":256,\"aaaa\":257,\"aaaaaaaa\":258",
                                               .merges = "\"a a\",\"aa aa\",\"aaaa aaaa\"",
                                               .pre_tokenizer = SPLIT("\\\\p{L}+")});
    char *text = malloc(N);
    int32_t *ids;
    size_t n_ids;
    assert_non_null(text);
    memset(text, 'a', N);
    EXPECT_OK(msa_tokenizer_encode(t, text, N, &ids, &n_ids));
    assert_int_equal(n_ids, N / 8);
    for (size_t i = 0; i < n_ids; i++) assert_int_equal(ids[i], 258);
    msa_free(ids);
    free(text);
    msa_tokenizer_close(t);
}

/* ---- cutting ------------------------------------------------------------------------------ */

static void test_split_isolates_matches(void **state)
{
    (void)state;
    msa_tokenizer *t = tokenizer_from_parts((tokenizer_parts){
        .tokens = ABC_TOKENS, .merges = "\"a b\",\"b c\",\"c d\"", .pre_tokenizer = SPLIT("b")});
    expect_ids(t, "abcd", "97 98 259");
    msa_tokenizer_close(t);
}

static void test_split_by_literal(void **state)
{
    (void)state;
    msa_tokenizer *t = tokenizer_from_parts((tokenizer_parts){
        .tokens = "\"a.\":256,\"..\":257",
        .merges = "\"a .\",\". .\"",
        .pre_tokenizer =
            "{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\",\"pattern\":{"
            "\"String\":\".\"},\"behavior\":\"Isolated\"}," BARE_BYTE_LEVEL "]}"});
    expect_ids(t, "a..a", "97 46 46 97");
    msa_tokenizer_close(t);
}

static void test_empty_matches_cut_too(void **state)
{
    (void)state;
    msa_tokenizer *t = tokenizer_from_parts((tokenizer_parts){.tokens = ABC_TOKENS,
                                                              .merges = "\"a b\",\"b c\",\"c d\"",
                                                              .pre_tokenizer = SPLIT("(?=c)")});
    expect_ids(t, "abcd", "256 259");
    msa_tokenizer_close(t);
}

static void test_byte_level_cuts_like_gpt2(void **state)
{
    (void)state;
    /* Every pair of letters or spaces merges, so that ids show where the cuts are. */
    msa_tokenizer *t = tokenizer_from_parts((tokenizer_parts){
        .tokens = "\"\xC4\xA0"
                  "a\":256,\"'s\":257,\"a'\":258,\"\xC4\xA0\xC4\xA0\":259,\"1a\":260",
        .merges = "[\"\xC4\xA0\",\"a\"],[\"'\",\"s\"],[\"a\",\"'\"],[\"\xC4\xA0\",\"\xC4\xA0\"],"
                  "[\"1\",\"a\"]",
        .pre_tokenizer = "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":true}"});
    expect_ids(t, "a a's", "97 256 257");
    expect_ids(t, "a   a", "97 259 256");
    expect_ids(t, "1a  ", "49 97 259");
    msa_tokenizer_close(t);
    t = tokenizer_from_parts((tokenizer_parts){
        .tokens = "\"\xC4\xA0"
                  "a\":256",
        .merges = "[\"\xC4\xA0\",\"a\"]",
        .pre_tokenizer = "{\"type\":\"ByteLevel\",\"add_prefix_space\":true,\"use_regex\":true}"});
    expect_ids(t, "a a", "256 256");
    expect_ids(t, " a", "256");
    expect_ids(t, "", "");
    msa_tokenizer_close(t);
}

static void test_mongolian_vowel_separator_is_no_space(void **state)
{
    (void)state;
    msa_tokenizer *t =
        tokenizer_from_parts((tokenizer_parts){.tokens = "\"\xC4\xA0\xC3\xA1\":256", /* space, E1 */
                                               .merges = "[\"\xC4\xA0\",\"\xC3\xA1\"]",
                                               .pre_tokenizer = SPLIT("\\\\s+")});
    expect_ids(t, " \xE1\xA0\x8E", "32 225 160 142");
    msa_tokenizer_close(t);
    t = tokenizer_from_parts((tokenizer_parts){.tokens = "\"\xC4\xA0\xC3\xA1\":256",
                                               .merges = "[\"\xC4\xA0\",\"\xC3\xA1\"]",
                                               .pre_tokenizer = SPLIT("[^\\\\S]+")});
    expect_ids(t, " \xE1\xA0\x8E", "32 225 160 142");
    expect_ids(t, " \xE1\x9A\x80", "256 154 128"); /* U+1680 is a space */
    msa_tokenizer_close(t);
}

/* ---- added tokens ------------------------------------------------------------------------- */

#define ADDED(id, content, flags)                                                                  \
    "{\"id\":" #id ",\"content\":\"" content "\",\"special\":false,\"normalized\":false" flags "}"

static void test_added_tokens_leftmost_longest(void **state)
{
    (void)state;
    msa_tokenizer *t = tokenizer_from_parts((tokenizer_parts){
        .added = ADDED(300, "<x>", "") "," ADDED(301, "<x>y", "") "," ADDED(302, "x>yz", "")});
    expect_ids(t, "<x>", "300");
    expect_ids(t, "<x>yz", "301 122");
    expect_ids(t, "<<x>z", "60 300 122");
    expect_ids(t, "ax>yz<x", "97 302 60 120");
    expect_ids(t, "<x><x>y", "300 301");
    assert_int_equal(msa_tokenizer_size(t), 303);
    assert_int_equal(msa_tokenizer_find(t, "<x>y"), 301);
    assert_int_equal(msa_tokenizer_find(t, "<x"), -1);
    msa_tokenizer_close(t);
}

static void test_added_tokens_strip_spaces(void **state)
{
    (void)state;
    msa_tokenizer *t = tokenizer_from_parts((tokenizer_parts){
        .added = ADDED(300, "<l>", ",\"lstrip\":true") "," ADDED(301, "<r>", ",\"rstrip\":true")});
    expect_ids(t, "a \t<l> b", "97 300 32 98");
    expect_ids(t, "a <r>\xE3\x80\x80 \n b", "97 32 301 98");
    expect_ids(t, "<r> <l>a", "301 300 97"); /* the space is taken once */
    msa_tokenizer_close(t);
}

static void test_added_tokens_as_single_words(void **state)
{
    (void)state;
    msa_tokenizer *t = tokenizer_from_parts(
        (tokenizer_parts){.added = ADDED(300, "cat", ",\"single_word\":true")});
    expect_ids(t, "cat", "300");
    expect_ids(t, "(cat)", "40 300 41");
    expect_ids(t, "cats", "99 97 116 115");
    expect_ids(t,
               "\xC3\xA9"
               "cat",
               "195 169 99 97 116");
    expect_ids(t, "cat_", "99 97 116 95");
    expect_ids(t, "cat\xC2\xB2", "300 194 178"); /* superscript two is no word character */
    msa_tokenizer_close(t);
}

static void test_added_token_of_the_vocabulary(void **state)
{
    (void)state;
    msa_tokenizer *t = tokenizer_from_parts(
        (tokenizer_parts){.tokens = ABC_TOKENS, .added = ADDED(256, "ab", "")});
    expect_ids(t, "abab", "256 256");
    msa_tokenizer_close(t);
}

static void test_nfc(void **state)
{
    (void)state;
    tokenizer_parts parts = {
        .normalizer = "{\"type\":\"NFC\"}",
        .added =
            ADDED(300, "e\xCC\x81", "") ",{\"id\":301,\"content\":\"<n>\",\"normalized\":true}"};
    msa_tokenizer *t = tokenizer_from_parts(parts);
    expect_ids(t, "o\xCC\x81", "195 179"); /* o + acute: one character */
    expect_ids(t,
               "e\xCC\x81"
               "a",
               "300 97");                                     /* found before normalization */
    expect_ids(t, "\xE1\x84\x80\xE1\x85\xA1", "234 176 128"); /* Hangul */
    expect_ids(t, "\xE2\x84\xAB<n>", "195 133 301");          /* Angstrom sign */
    /* acute and dot below are sorted by class, then o takes the dot first */
    expect_ids(t, "o\xCC\x81\xCC\xA3", "225 187 141 204 129");
    expect_ids(t, "\xE0\xA5\x98", "224 164 149 224 164 188"); /* excluded from composition */
    msa_tokenizer_close(t);
}

static void test_nfc_of_a_long_run_of_marks(void **state)
{
    (void)state;
    enum { N = 200000 };
    msa_tokenizer *t = tokenizer_from_parts((tokenizer_parts){.normalizer = "{\"type\":\"NFC\"}"});
    char *text = malloc(4 * N);
    int32_t *ids;
    size_t n_ids;
    assert_non_null(text);
    for (int i = 0; i < N; i++) memcpy(text + 4 * i, "\xCC\x95\xCC\xA3", 4); /* above, below */
    EXPECT_OK(msa_tokenizer_encode(t, text, 4 * N, &ids, &n_ids));
    assert_int_equal(n_ids, 4 * N);
    for (int i = 0; i < N; i++) assert_int_equal(ids[2 * i + 1], 0xA3);
    for (int i = N; i < 2 * N; i++) assert_int_equal(ids[2 * i + 1], 0x95);
    msa_free(ids);
    free(text);
    msa_tokenizer_close(t);
}

/* ---- arguments, decoding, UTF-8 ----------------------------------------------------------- */

static void test_decode(void **state)
{
    (void)state;
    /* A spelling outside the byte alphabet is its own text; one inside it is bytes. */
    msa_tokenizer *t =
        tokenizer_from_parts((tokenizer_parts){.tokens = "\"\xE6\x97\xA5\":256",
                                               .added = ADDED(300,
                                                              "\xC3\xA9"
                                                              "a",
                                                              "") "," ADDED(301, "a b", "")});
    const int32_t ids[] = {256, 300, 301, 0, 65};
    const int32_t missing[] = {65, 280}, beyond[] = {302}, negative[] = {-1};
    char *text;
    size_t n;
    EXPECT_OK(msa_tokenizer_decode(t, ids, 5, &text, &n));
    assert_int_equal(n, 10);
    assert_memory_equal(text,
                        "\xE6\x97\xA5\xE9"
                        "aa b\0A",
                        11);
    msa_free(text);
    EXPECT_OK(msa_tokenizer_decode(t, NULL, 0, &text, &n));
    assert_string_equal(text, "");
    msa_free(text);
    EXPECT_FAIL(MSA_EINVAL, "ids[1] = 280", msa_tokenizer_decode(t, missing, 2, &text, &n));
    EXPECT_FAIL(MSA_EINVAL, "ids[0] = 302", msa_tokenizer_decode(t, beyond, 1, &text, &n));
    EXPECT_FAIL(MSA_EINVAL, "ids[0] = -1", msa_tokenizer_decode(t, negative, 1, &text, &n));
    assert_null(text);
    msa_tokenizer_close(t);
}

static void test_encode_arguments(void **state)
{
    (void)state;
    msa_tokenizer *t = tokenizer_from_parts((tokenizer_parts){0});
    int32_t *ids;
    size_t n;
    EXPECT_OK(msa_tokenizer_encode(t, NULL, 0, &ids, &n));
    assert_int_equal(n, 0);
    msa_free(ids);
    expect_ids_n(t, "a\0b", 3, "97 0 98");
    EXPECT_FAIL(MSA_EINVAL, "NULL", msa_tokenizer_encode(t, NULL, 1, &ids, &n));
    EXPECT_FAIL(MSA_EINVAL, "NULL", msa_tokenizer_encode(NULL, "a", 1, &ids, &n));
    static const struct {
        const char *text, *message;
    } bad[] = {{"ab\xff", "byte 2 = 0xff"},       {"\xC3", "byte 0 = 0xc3"},
               {"a\xC0\x80", "byte 1"},           {"\xED\xA0\x80", "byte 0"},
               {"12345678\x80", "byte 8 = 0x80"}, {"\xF4\x90\x80\x80", "byte 0"},
               {"\xE0\x9F\xBF", "byte 0"},        {"1234567\xE2\x82z", "byte 7"}};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        EXPECT_FAIL(MSA_EFORMAT, bad[i].message,
                    msa_tokenizer_encode(t, bad[i].text, strlen(bad[i].text), &ids, &n));
        assert_null(ids);
    }
    msa_tokenizer_close(t);
    msa_tokenizer_close(NULL);
    assert_int_equal(msa_tokenizer_size(NULL), 0);
    EXPECT_FAIL(MSA_EINVAL, "dir", msa_tokenizer_open(&t, NULL));
    EXPECT_FAIL(MSA_EIO, "nowhere/tokenizer.json", msa_tokenizer_open(&t, "nowhere"));
    assert_null(t);
}

static void test_streaming_stops_at_characters(void **state)
{
    (void)state;
    const char *text = "a\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80";
    static const size_t complete[] = {0, 1, 1, 3, 3, 3, 6, 6, 6, 6, 10};
    for (size_t n = 0; n <= 10; n++) assert_int_equal(msa_utf8_complete(text, n), complete[n]);
    /* What no further byte can repair is not held back. */
    assert_int_equal(msa_utf8_complete("a\xff", 2), 2);
    assert_int_equal(msa_utf8_complete("\x80\x80\x80\x80", 4), 4);
    assert_int_equal(msa_utf8_complete("a\xE0\x80", 3), 3);
    assert_int_equal(msa_utf8_complete("a\xED\xA0", 3), 3);
    assert_int_equal(msa_utf8_complete("\xC3\xA9\xA9", 3), 3);
}

static void test_utf8_next(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        size_t length;
        int32_t valid;
    } cases[] = {
        {"a", 1, 1},        {"\xC3\xA9x", 2, 1}, {"\xF0\x9F\x98\x80", 4, 1}, {"\xC3", 1, 0},
        {"\xE2\x82", 2, 0}, {"\xE2\x82x", 2, 0}, {"\xF0\x9F\x98x", 3, 0},    {"\xED\xA0\x80", 1, 0},
        {"\xC1\x80", 1, 0}, {"\x80", 1, 0},      {"\xF5\x80", 1, 0}};
    int32_t valid;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        assert_int_equal(msa_utf8_next(cases[i].text, strlen(cases[i].text), &valid),
                         cases[i].length);
        assert_int_equal(valid, cases[i].valid);
    }
    assert_int_equal(msa_utf8_next("", 0, &valid), 0);
}

/* ---- threads ------------------------------------------------------------------------------ */

static void *encode_in_thread(void *arg)
{
    int32_t *ids;
    size_t n;
    for (int i = 0; i < 200; i++) {
        if (msa_tokenizer_encode(arg, "abcd abc ab bc", 14, &ids, &n) != MSA_OK) return arg;
        msa_free(ids);
    }
    return NULL;
}

static void test_threads_share_a_tokenizer(void **state)
{
    (void)state;
    pthread_t threads[4];
    msa_tokenizer *t = tokenizer_from_parts((tokenizer_parts){
        .tokens = ABC_TOKENS, .merges = "\"a b\",\"b c\"", .pre_tokenizer = SPLIT("[a-d]+")});
    for (int i = 0; i < 4; i++) {
        assert_int_equal(pthread_create(&threads[i], NULL, encode_in_thread, t), 0);
    }
    for (int i = 0; i < 4; i++) {
        void *failed;
        assert_int_equal(pthread_join(threads[i], &failed), 0);
        assert_null(failed);
    }
    msa_tokenizer_close(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden_1k),
        cmocka_unit_test(test_golden_8k),
        cmocka_unit_test(test_lowest_rank_merges_first),
        cmocka_unit_test(test_equal_ranks_merge_from_the_left),
        cmocka_unit_test(test_repeated_merge_takes_the_later_rank),
        cmocka_unit_test(test_ignore_merges_takes_whole_pieces),
        cmocka_unit_test(test_long_pieces_merge_like_short_ones),
        cmocka_unit_test(test_two_million_letters_in_a_row),
        cmocka_unit_test(test_split_isolates_matches),
        cmocka_unit_test(test_split_by_literal),
        cmocka_unit_test(test_empty_matches_cut_too),
        cmocka_unit_test(test_byte_level_cuts_like_gpt2),
        cmocka_unit_test(test_mongolian_vowel_separator_is_no_space),
        cmocka_unit_test(test_added_tokens_leftmost_longest),
        cmocka_unit_test(test_added_tokens_strip_spaces),
        cmocka_unit_test(test_added_tokens_as_single_words),
        cmocka_unit_test(test_added_token_of_the_vocabulary),
        cmocka_unit_test(test_nfc),
        cmocka_unit_test(test_nfc_of_a_long_run_of_marks),
        cmocka_unit_test(test_decode),
        cmocka_unit_test(test_encode_arguments),
        cmocka_unit_test(test_streaming_stops_at_characters),
        cmocka_unit_test(test_utf8_next),
        cmocka_unit_test(test_threads_share_a_tokenizer),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
