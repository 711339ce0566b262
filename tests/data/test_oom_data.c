/* Failing every allocation of training a tokenizer, making shards, and opening a dataset: each
 * failure is MSA_ENOMEM, leaves no unfinished file, and (sanitizer build) leaks nothing. */
#include "harness/cmocka_all.h"
#include "data/corpus.h"
#include "harness/failing_malloc.h"

#include "msa/data.h"

#include <stdio.h>

typedef msa_status (*attempt)(const corpus *c);

/* Returns how many allocations the attempt makes. */
static int64_t sweep(const corpus *c, attempt attempt_once)
{
    for (int64_t n = 1;; n++) {
        failing_malloc_begin(n);
        msa_status status = attempt_once(c);
        if (!failing_malloc_end()) {
            EXPECT_OK(status);
            return n - 1;
        }
        if (status == MSA_OK) continue; /* PCRE2's JIT compiler may do without some of its memory */
        assert_int_equal(status, MSA_ENOMEM);
        assert_non_null(strstr(msa_last_error(), "no memory"));
    }
}

static msa_status train(const corpus *c)
{
    char out[512];
    snprintf(out, sizeof(out), "%s", corpus_path(c, "trained"));
    return msa_tokenizer_train(out, corpus_path(c, "text"), 267, MSA_ADDED_CHAT, 0, NULL, NULL);
}

static msa_status make_shards(const corpus *c)
{
    char out[512], tokenizer[512];
    snprintf(out, sizeof(out), "%s", corpus_path(c, "shards"));
    snprintf(tokenizer, sizeof(tokenizer), "%s", corpus_path(c, "trained"));
    return msa_shards_make(out, tokenizer, corpus_path(c, "text"), NULL, NULL, NULL);
}

static const msa__json *description;

static msa_status open_dataset(const corpus *c)
{
    msa__dataset *dataset;
    msa_status status =
        msa__dataset_open(&dataset, description, corpus_path(c, "cache"), 1, NULL, NULL);
    msa__dataset_close(dataset);
    return status;
}

static void test_oom(void **state)
{
    (void)state;
    corpus c = corpus_create();
    static const char text[] = "a text, and a text about a text";
    corpus_write(&c, "text/a.txt", text, sizeof(text) - 1);
    assert_true(sweep(&c, train) > 20);
    assert_true(sweep(&c, make_shards) > 20);
    char json[1024];
    snprintf(json, sizeof(json),
             "{\"tokenizer\": \"%s/trained\", \"sources\": [{\"shards\": "
             "\"%s/shards\"}, {\"text\": \"%s/text\"}, {\"tasks\": [\"passkey\"], "
             "\"lengths\": [1024], \"haystack\": \"%s/text\"}]}",
             c.dir, c.dir, c.dir, c.dir);
    EXPECT_OK(msa__json_parse(&description, NULL, "test", json, strlen(json)));
    assert_true(sweep(&c, open_dataset) > 20);
    msa__json_free(description);
    corpus_remove(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_oom)};
    return cmocka_run_group_tests_name("oom_data", tests, NULL, NULL);
}
