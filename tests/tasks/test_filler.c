/* Filler: sentences of a text in their order, whatever the text is; our own words are all
 * different. */
#include "harness/cmocka_all.h"
#include "tasks/sample.h"

#include "tasks/word_list.h"

#include <stdlib.h>

/* The context of a sample whose filler is this text, without its needle. NUL-terminated, owned. */
static char *hay(const char *text, size_t text_bytes, int64_t length, int64_t index)
{
    msa_task_args args = sample_args("single-needle", length, 2);
    args.text = text;
    args.text_bytes = text_bytes;
    msa_task_sample sample = sample_make(&args, index);
    const char *begin, *end;
    sample_context(&sample, &begin, &end);
    const char *needle = strstr(begin, "One of the special magic ");
    const char *after = strchr(needle, '.') + 1;
    char *out = calloc(1, (size_t)(end - begin) + 2);
    memcpy(out, begin, (size_t)(needle - begin));
    memcpy(out + (needle - begin), after, (size_t)(end - after));
    msa_task_sample_free(&sample);
    return out;
}

static void test_sentences_in_order(void **state)
{
    (void)state;
    static const char text[] =
        "First one\nis here.  Second, they said! \"Is this the third?\" Then\n\n"
        "a heading\n\nFifth (in brackets.) Sixth of all.";
    static const char *const sentences[] = {
        "First one is here.", "Second, they said!",   "\"Is this the third?\"", "Then",
        "a heading",          "Fifth (in brackets.)", "Sixth of all."};
    int32_t starts[7] = {0};
    for (int64_t index = 0; index < 60; index++) {
        char *context = hay(text, sizeof(text) - 1, 400, index), *at = context;
        size_t which = 0, n = 0;
        while (*at == ' ') at++;
        while (which < 7 && strncmp(at, sentences[which], strlen(sentences[which])) != 0) which++;
        assert_true(which < 7);
        starts[which]++;
        for (; *at; n++, which = (which + 1) % 7) {
            assert_memory_equal(at, sentences[which], strlen(sentences[which]));
            at += strlen(sentences[which]);
            while (*at == ' ') at++;
        }
        assert_true(n > 14); /* it began again */
        free(context);
    }
    for (int i = 0; i < 7; i++) assert_true(i == 4 || starts[i] > 0);
}

/* Bytes between sentences and in them: nothing is lost, no character is cut. */
static void check_any_text(const char *text, size_t text_bytes)
{
    for (int64_t index = 0; index < 8; index++) {
        char *context = hay(text, text_bytes, 900, index);
        for (size_t at = 0, n = strlen(context); at < n;) {
            int32_t valid;
            at += msa_utf8_next(context + at, n - at, &valid);
            assert_true(valid);
        }
        assert_null(strstr(context, "   ")); /* two where the needle was, one elsewhere */
        free(context);
    }
}

static void test_any_text(void **state)
{
    (void)state;
    static char endless[5000], wide[6001];
    memset(endless, 'x', sizeof(endless));
    for (size_t i = 0; i < 6000; i += 3) memcpy(wide + i, "\xe6\xb5\xb7", 3);
    check_any_text(endless, sizeof(endless)); /* no space, no full stop */
    check_any_text(wide, 6000);
    check_any_text("a", 1);
    check_any_text("\n\n.\n\n", 5);
    check_any_text("a.\0b.\0c d", 9); /* NUL is white space */
    check_any_text("\xe2\x80\x9cWell.\xe2\x80\x9d Yes. \xe2\x80\x98No.\xe2\x80\x99", 26);
}

static int compare_words(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static void test_words_are_different(void **state)
{
    (void)state;
    const char *all[2048];
    int32_t n = 0;
    for (int32_t i = 0; i < msa__n_adjectives; i++) all[n++] = msa__adjectives[i];
    for (int32_t i = 0; i < msa__n_nouns; i++) all[n++] = msa__nouns[i];
    for (int32_t i = 0; i < msa__n_verbs; i++) all[n++] = msa__verbs[i];
    assert_true(n > 900);
    qsort(all, (size_t)n, sizeof(*all), compare_words);
    for (int32_t i = 0; i < n; i++) {
        assert_int_equal(strspn(all[i], "abcdefghijklmnopqrstuvwxyz"), strlen(all[i]));
        if (i > 0) assert_string_not_equal(all[i - 1], all[i]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sentences_in_order),
        cmocka_unit_test(test_any_text),
        cmocka_unit_test(test_words_are_different),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
