/* Tokenizer training: merges as counted by hand and by counting everything again each time; files
 * that this library reads; the same files twice. */
#include "harness/cmocka_all.h"
#include "data/corpus.h"

#include "base/rng.h"
#include "data/bpe_train.h"
#include "model/byte_alphabet.h"
#include "msa/data.h"

#include <stdio.h>
#include <stdlib.h>

static void count(msa__pieces *pieces, const char *text)
{
    msa__pattern *pattern;
    msa__matcher *matcher;
    EXPECT_OK(msa__pattern_create(&pattern, msa__m3_pattern, strlen(msa__m3_pattern), 0));
    EXPECT_OK(msa__matcher_create(&matcher));
    EXPECT_OK(msa__pieces_add(pieces, pattern, matcher, text, strlen(text)));
    msa__matcher_destroy(matcher);
    msa__pattern_destroy(pattern);
}

/* The learned tokens, in order, with a space between. */
static void expect_learned(const char *text, int32_t no_digits, int32_t n, const char *expected)
{
    msa__pieces pieces = {.no_digits = no_digits};
    msa__learned learned = {0};
    char got[512] = "";
    count(&pieces, text);
    EXPECT_OK(msa__bpe_learn(&learned, &pieces, 256 + n, NULL, NULL));
    assert_int_equal(learned.n_tokens, 256 + n);
    for (int32_t i = 256; i < learned.n_tokens; i++) {
        size_t used = strlen(got);
        snprintf(got + used, sizeof(got) - used, "%s%.*s", used ? "_" : "",
                 (int)learned.tokens[i].n, learned.tokens[i].bytes);
    }
    assert_string_equal(got, expected);
    msa__learned_free(&learned);
    msa__pieces_free(&pieces);
}

static void test_merges_counted_by_hand(void **state)
{
    (void)state;
    /* hug 10, pug 5, pun 12, bun 4, hugs 5. ug 20, un 16, h+ug 15, p+un 12; then p+ug and hug+s are
     * both 5, and p has the lower id; then b+un 4. */
    char text[512] = "";
    static const struct {
        const char *word;
        int n;
    } words[] = {{"bun\n", 4}, {"hug\n", 10}, {"hugs\n", 5}, {"pug\n", 5}, {"pun\n", 12}};
    for (int i = 0; i < 5; i++) {
        for (int k = 0; k < words[i].n; k++) strcat(text, words[i].word);
    }
    expect_learned(text, 0, 7, "ug_un_hug_pun_pug_hugs_bun");
    /* aaaa: three pairs a+a in each, then one aa+aa; the fifth a of the second line is left over.
     */
    expect_learned("aaaa\naaaaa\n", 0, 2, "aa_aaaa");
    /* Pieces: a space goes with the word behind it, three digits at most, no pair across pieces. */
    expect_learned("a 12345 b 12345 c", 0, 2, "12_45");
    expect_learned("a12 12 12 12 xy xy", 1, 2, "xy_ xy");
}

/* ---- against counting again --------------------------------------------------------------- */

typedef struct naive {
    int32_t tokens[512][32]; /* of each piece */
    int32_t lengths[512];
    int64_t counts[512];
    int32_t n;
} naive;

static int64_t naive_count(const naive *w, int32_t left, int32_t right)
{
    int64_t n = 0;
    for (int32_t i = 0; i < w->n; i++) {
        for (int32_t k = 0; k + 1 < w->lengths[i]; k++) {
            if (w->tokens[i][k] == left && w->tokens[i][k + 1] == right) n += w->counts[i];
        }
    }
    return n;
}

static void naive_merge(naive *w, int32_t left, int32_t right, int32_t product)
{
    for (int32_t i = 0; i < w->n; i++) {
        int32_t to = 0, *tokens = w->tokens[i];
        for (int32_t k = 0; k < w->lengths[i]; k++) {
            int hit = k + 1 < w->lengths[i] && tokens[k] == left && tokens[k + 1] == right;
            tokens[to++] = hit ? product : tokens[k];
            k += hit;
        }
        w->lengths[i] = to;
    }
}

/* The pair that occurs most often, of equals the lowest. */
static msa__token_pair naive_best(const naive *w)
{
    msa__token_pair best = {0, 0};
    int64_t most = 0;
    for (int32_t i = 0; i < w->n; i++) {
        for (int32_t k = 0; k + 1 < w->lengths[i]; k++) {
            msa__token_pair pair = {w->tokens[i][k], w->tokens[i][k + 1]};
            int64_t n = naive_count(w, pair.left, pair.right);
            int lower =
                pair.left < best.left || (pair.left == best.left && pair.right < best.right);
            if (n > most || (n == most && lower)) best = pair;
            if (n > most) most = n;
        }
    }
    return best;
}

static void test_merges_counted_again_each_time(void **state)
{
    (void)state;
    enum { LEARNED = 50 };
    static naive w;
    msa__pieces pieces = {0};
    msa__learned learned = {0};
    char text[1024];
    for (uint64_t i = 0; i < sizeof(text) - 1; i++) { /* few letters, so that there are ties */
        uint32_t words[4];
        msa__philox(11, i, 0, words);
        text[i] = "aabc \n"[words[0] % 6];
    }
    text[sizeof(text) - 1] = '\0';
    count(&pieces, text);
    EXPECT_OK(msa__bpe_learn(&learned, &pieces, 256 + LEARNED, NULL, NULL));
    assert_true(pieces.n > 50 && pieces.n <= 512);
    w.n = (int32_t)pieces.n;
    for (int32_t i = 0; i < w.n; i++) {
        const msa__piece *piece = &pieces.items[i];
        assert_true(piece->n <= 32);
        w.counts[i] = piece->count;
        w.lengths[i] = (int32_t)piece->n;
        for (uint32_t k = 0; k < piece->n; k++) {
            int32_t id = 0;
            while ((char)msa__byte_in_alphabet(id) != piece->bytes[k]) id++;
            w.tokens[i][k] = id;
        }
    }
    assert_int_equal(learned.n_merges, LEARNED);
    for (int32_t i = 0; i < LEARNED; i++) {
        msa__token_pair best = naive_best(&w);
        assert_int_equal(learned.merges[i].left, best.left);
        assert_int_equal(learned.merges[i].right, best.right);
        naive_merge(&w, best.left, best.right, 256 + i);
    }
    msa__learned_free(&learned);
    msa__pieces_free(&pieces);
}

/* ---- files -------------------------------------------------------------------------------- */

static const char sentence[] =
    "The \"quick\" brown fox\\jumps over 12345 lazy dogs, na\xc3\xafvely; "
    "\xe6\x9d\xb1\xe4\xba\xac!\n"
    "The quicker fox jumped over the laziest dogs of \xe6\x9d\xb1\xe4\xba\xac in 12399 days.\r\n\t";

static void read_file(const corpus *c, const char *name, msa__text *out)
{
    FILE *file = fopen(corpus_path(c, name), "rb");
    assert_non_null(file);
    for (int byte; (byte = fgetc(file)) != EOF;) msa__text_add(out, &(char){(char)byte}, 1);
    fclose(file);
}

static msa_status train(const corpus *c, const char *out, const char *text, int32_t vocab,
                        int32_t added)
{
    char dir[512];
    snprintf(dir, sizeof(dir), "%s", corpus_path(c, out));
    return msa_tokenizer_train(dir, corpus_path(c, text), vocab, added, 0, NULL, NULL);
}

static void test_files_are_read_back(void **state)
{
    (void)state;
    corpus c = corpus_create();
    corpus_write(&c, "text/a.txt", sentence, sizeof(sentence) - 1);
    corpus_write(&c, "text/b.txt", sentence, sizeof(sentence) - 1);
    static const int32_t vocabs[] = {263, 300, 345};
    for (int i = 0; i < 3; i++) {
        msa_tokenizer *tokenizer;
        int32_t *ids;
        size_t n_ids, n_text;
        char *text, every_byte[256];
        EXPECT_OK(train(&c, "out", "text", vocabs[i], i == 2 ? MSA_ADDED_M3 : MSA_ADDED_CHAT));
        EXPECT_OK(msa_tokenizer_open(&tokenizer, corpus_path(&c, "out")));
        assert_int_equal(msa_tokenizer_size(tokenizer), vocabs[i]);
        assert_int_equal(msa_tokenizer_find(tokenizer, "</mm:think>") >= 0, 1);
        assert_int_equal(msa_tokenizer_find(tokenizer, "<fim_pad>") >= 0, i == 2);
        EXPECT_OK(msa_tokenizer_encode(tokenizer, sentence, sizeof(sentence) - 1, &ids, &n_ids));
        EXPECT_OK(msa_tokenizer_decode(tokenizer, ids, n_ids, &text, &n_text));
        assert_int_equal(n_text, sizeof(sentence) - 1);
        assert_memory_equal(text, sentence, n_text);
        assert_int_equal(n_ids == n_text, i == 0); /* bytes alone, or fewer */
        msa_free(text);
        msa_free(ids);
        int32_t all[256];
        for (int32_t k = 0; k < 256; k++) all[k] = k;
        EXPECT_OK(msa_tokenizer_decode(tokenizer, all, 256, &text, &n_text));
        for (int32_t k = 0; k < 256; k++) every_byte[k] = (char)msa__byte_in_alphabet(k);
        assert_memory_equal(text, every_byte, 256);
        msa_free(text);
        msa_tokenizer_close(tokenizer);
    }
    msa__text first = {0}, second = {0};
    EXPECT_OK(train(&c, "again", "text", 345, MSA_ADDED_M3));
    read_file(&c, "out/tokenizer.json", &first);
    read_file(&c, "again/tokenizer.json", &second);
    assert_int_equal(first.n, second.n);
    assert_memory_equal(first.bytes, second.bytes, first.n);
    msa__text_free(&first);
    msa__text_free(&second);
    corpus_remove(&c);
}

static void test_requests_are_checked(void **state)
{
    (void)state;
    corpus c = corpus_create();
    corpus_write(&c, "text/a.txt", sentence, sizeof(sentence) - 1);
    corpus_write(&c, "bad/b.txt", "fine\xc3", 5);
    EXPECT_FAIL(MSA_EINVAL, "must be in 263..", train(&c, "out", "text", 262, MSA_ADDED_CHAT));
    EXPECT_FAIL(MSA_EINVAL, "must be in 317..", train(&c, "out", "text", 316, MSA_ADDED_M3));
    EXPECT_FAIL(MSA_EINVAL, "the text gives", train(&c, "out", "text", 8192, MSA_ADDED_CHAT));
    EXPECT_FAIL(MSA_EINVAL, "added = 2", train(&c, "out", "text", 300, 2));
    EXPECT_FAIL(MSA_EFORMAT, "b.txt: train_tokenizer: byte 4",
                train(&c, "out", "bad", 300, MSA_ADDED_CHAT));
    EXPECT_FAIL(MSA_EIO, "nothing", train(&c, "out", "nothing", 300, MSA_ADDED_CHAT));
    EXPECT_FAIL(MSA_EINVAL, "text = NULL", msa_tokenizer_train("x", NULL, 300, 0, 0, NULL, NULL));
    corpus_remove(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_merges_counted_by_hand),
        cmocka_unit_test(test_merges_counted_again_each_time),
        cmocka_unit_test(test_files_are_read_back),
        cmocka_unit_test(test_requests_are_checked),
    };
    return cmocka_run_group_tests_name("train_tokenizer", tests, NULL, NULL);
}
