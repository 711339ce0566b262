/* Batches made ahead are those of msa__dataset_batch, in any order, and errors come when they are
 * due. Runs under the thread sanitizer. */
#include "harness/cmocka_all.h"
#include "data/corpus.h"

#include "data/prefetch.h"

#include <stdlib.h>

enum { N = 3, TOKENS = 1024, LENGTH = 512, END = 40 * N };

static msa__dataset *open_mixture(const corpus *c)
{
    char text[4000];
    msa__dataset *d;
    for (size_t i = 0; i < sizeof(text); i++) text[i] = "the same words again. "[i * i % 22];
    corpus_write(c, "text/a.txt", text, sizeof(text));
    EXPECT_OK(corpus_open(
        c, &d, "[{\"text\": \"@/text\"}, {\"tasks\": [\"passkey\"], \"lengths\": [400]}]", 7));
    return d;
}

static msa__prefetch *start(const msa__dataset *d, int64_t length)
{
    msa__prefetch *p;
    msa__prefetch_args args = {
        .dataset = d, .n = N, .n_tokens = TOKENS, .length = length, .end = END};
    EXPECT_OK(msa__prefetch_create(&p, &args));
    return p;
}

static void expect_step(msa__prefetch *p, const msa__dataset *d, msa__batch *plain, int64_t first)
{
    const msa__batches *ahead;
    EXPECT_OK(msa__prefetch_take(p, first, &ahead));
    assert_int_equal(ahead->n, N);
    for (int64_t i = 0; i < N; i++) {
        const msa__batch *b = &ahead->list[i];
        EXPECT_OK(msa__dataset_batch(d, (uint64_t)(first + i), TOKENS, LENGTH, plain));
        assert_int_equal(b->n_tokens, TOKENS);
        assert_int_equal(b->n_sequences, plain->n_sequences);
        assert_int_equal(b->n_targets, plain->n_targets);
        assert_memory_equal(b->tokens, plain->tokens, TOKENS * sizeof(int32_t));
        assert_memory_equal(b->targets, plain->targets, TOKENS * sizeof(int32_t));
        assert_memory_equal(b->positions, plain->positions, TOKENS * sizeof(int32_t));
        assert_memory_equal(b->cu_seqlens, plain->cu_seqlens,
                            (size_t)(plain->n_sequences + 1) * sizeof(int32_t));
    }
}

static void test_the_same_batches(void **state)
{
    (void)state;
    corpus c = corpus_create();
    msa__dataset *d = open_mixture(&c);
    msa__batch plain = batch_create(TOKENS);
    msa__prefetch *p = start(d, LENGTH);
    for (int64_t first = 0; first < END; first += N) expect_step(p, d, &plain, first);
    expect_step(p, d, &plain, 0); /* not what comes next */
    expect_step(p, d, &plain, 7);
    expect_step(p, d, &plain, 7);
    msa__prefetch_destroy(p);
    for (int i = 0; i < 20;
         i++) { /* ended while the next step is being made, or before the first */
        p = start(d, LENGTH);
        if (i % 2) expect_step(p, d, &plain, i);
        msa__prefetch_destroy(p);
    }
    batch_free(&plain);
    msa__dataset_close(d);
    corpus_remove(&c);
}

/* A step that cannot be made fails when it is taken, with its message, and harms no other. */
static void test_errors_come_when_due(void **state)
{
    (void)state;
    corpus c = corpus_create();
    msa__dataset *d = open_mixture(&c);
    const msa__batches *ahead;
    msa__prefetch *p = start(d, 256); /* shorter than the tasks */
    for (int i = 0; i < 3; i++) {
        assert_int_equal(msa__prefetch_take(p, 0, &ahead), MSA_EINVAL);
        assert_non_null(strstr(msa_last_error(), "the tasks' lengths are all above"));
    }
    msa__prefetch_destroy(p);

    int64_t last = ((int64_t)1 << 37) - N; /* the rows of a run end behind this step */
    msa__prefetch_args args = {
        .dataset = d, .n = N, .n_tokens = TOKENS, .length = LENGTH, .end = INT64_MAX};
    EXPECT_OK(msa__prefetch_create(&p, &args));
    EXPECT_OK(msa__prefetch_take(p, last, &ahead));
    assert_int_equal(ahead->list[N - 1].n_tokens, TOKENS);
    assert_int_equal(msa__prefetch_take(p, last + N, &ahead), MSA_EINVAL);
    assert_non_null(strstr(msa_last_error(), "must be below"));
    EXPECT_OK(msa__prefetch_take(p, 0, &ahead));
    msa__prefetch_destroy(p);
    msa__dataset_close(d);
    corpus_remove(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_the_same_batches),
        cmocka_unit_test(test_errors_come_when_due),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
