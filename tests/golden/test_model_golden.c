/* Whole models against goldens of an independent implementation, on every path this machine has. */
#include "golden/golden.h"
#include "harness/cmocka_all.h"
#include "harness/reduced.h"

#include <stdio.h>
#include <stdlib.h>

/* A backend and ISA that can run here. The first one is ref, the naive implementation; reduced, it
 * and the best of the others. */
typedef struct {
    const char *backend, *isa;
} path;

static int list_paths(path *paths)
{
    int n = 0;
    int32_t usable;
    const char *isa;
    paths[n++] = (path){"ref", NULL};
    if (test_backend()) {
        paths[n++] = (path){test_backend(), NULL};
        return n;
    }
    for (int32_t i = 0; (isa = msa_cpu_isa_name(i, &usable)); i++) {
        if (usable) paths[n++] = (path){"cpu", isa};
        if (test_is_reduced() && n == 2) break;
    }
    return n;
}

#define MAX_PATHS 16

/* Issue section 4: sets identical, logits within 1e-4 of the golden's largest absolute value. */
#define TOLERANCE 1e-4

/* The whole prompt at once: selections, layer outputs, logits; then the greedy continuation. */
static void check_prompt(const golden *g, const path *p)
{
    subject s;
    msa_session *session;
    msa_sample_args greedy;
    subject_open(&s, g->dir, p->backend, p->isa, 2);
    record *r = record_make(&s, g->n_tokens);
    msa_engine *engine = engine_make(&s, MSA_DTYPE_F32, MSA_DTYPE_F32, g->n_tokens + g->n_generated,
                                     (int32_t)g->n_tokens, 1, MSA_ATTENTION_SPARSE);
    EXPECT_OK(msa_session_create(&session, engine));
    feed(engine, session, g->tokens, g->n_tokens, r);
    expect_same_blocks(g, r);
    expect_near(g, r, TOLERANCE);
    msa_sample_args_init(&greedy);
    for (int64_t i = 0; i < g->n_generated; i++) {
        int32_t token;
        EXPECT_OK(msa_session_sample(session, &greedy, &token));
        assert_int_equal(token, g->generated[i]);
        msa_batch_item item = {.session = session, .tokens = &token, .n_tokens = 1};
        EXPECT_OK(msa_engine_forward(engine, &item, 1, NULL));
    }
    msa_session_destroy(session);
    msa_engine_destroy(engine);
    record_free(r);
    subject_close(&s);
}

/* (I5): any cut of the prompt gives the same selections and the same logits within tolerance. */
static void check_cuts(const golden *g, const path *p, const int32_t *chunks, int n_chunks,
                       const int64_t *decode_from, int n_decode)
{
    subject s;
    subject_open(&s, g->dir, p->backend, p->isa, 1);
    for (int i = 0; i < n_chunks + n_decode; i++) {
        int32_t chunk = i < n_chunks ? chunks[i] : 512;
        int64_t from = i < n_chunks ? g->n_tokens : decode_from[i - n_chunks];
        record *r = run_tokens(&s, g->tokens, g->n_tokens, MSA_DTYPE_F32, MSA_DTYPE_F32, chunk,
                               from, MSA_ATTENTION_SPARSE);
        expect_same_blocks(g, r);
        expect_near(g, r, TOLERANCE);
        record_free(r);
    }
    subject_close(&s);
}

/* bf16 activations and caches. The naive implementation is the reference backend, plain loops that
 * round where bf16 rounds; a path may be twice as far from the f32 golden as that. */
static void check_bf16(const golden *g)
{
    path paths[MAX_PATHS];
    int n_paths = list_paths(paths);
    double naive = 0;
    for (int i = 0; i < n_paths; i++) {
        subject s;
        subject_open(&s, g->dir, paths[i].backend, paths[i].isa, 2);
        record *r = run_tokens(&s, g->tokens, g->n_tokens, MSA_DTYPE_BF16, MSA_DTYPE_BF16,
                               (int32_t)g->n_tokens, g->n_tokens, MSA_ATTENTION_SPARSE);
        double error = logits_error(g, r);
        if (i == 0) naive = error;
        if (!(error <= 2 * naive + 1e-6)) {
            fail_msg("%s %s: bf16 error %g, naive bf16 has %g", g->dir,
                     paths[i].isa ? paths[i].isa : paths[i].backend, error, naive);
        }
        record_free(r);
        subject_close(&s);
    }
}

/* ---- the models --------------------------------------------------------------------------- */

static void check_small_model(const char *name)
{
    golden g;
    path paths[MAX_PATHS];
    int n_paths = list_paths(paths);
    if (!golden_open(&g, name)) skip();
    const int32_t chunks[] = {64, 1, 7, 16};
    const int64_t decode_from[] = {100, 15, 16, g.n_tokens - 1};
    for (int i = test_backend() ? 1 : 0; i < n_paths; i++) {
        /* every cut on the best path, one of a kind on the others */
        int n_cuts = i == 1 && !test_is_reduced() ? 4 : 1;
        check_prompt(&g, &paths[i]);
        check_cuts(&g, &paths[i], chunks, n_cuts, decode_from, n_cuts);
    }
    check_bf16(&g);
    golden_close(&g);
}

/* The vectorised paths only: plain loops, ref and the generic path, would take long. */
static void check_large_model(const char *name, const int32_t *chunks, int n_chunks,
                              int64_t n_decoded)
{
    golden g;
    path paths[MAX_PATHS];
    int n_paths = list_paths(paths);
    if (!golden_open(&g, name)) skip();
    int64_t decode_from = g.n_tokens - n_decoded;
    for (int i = 1; i < n_paths; i++) {
        if (!paths[i].isa || strcmp(paths[i].isa, "generic") != 0) check_prompt(&g, &paths[i]);
    }
    if (!test_is_reduced()) check_cuts(&g, &paths[1], chunks, n_chunks, &decode_from, 1);
    golden_close(&g);
}

static void test_tiny_a(void **state)
{
    (void)state;
    check_small_model("tiny-a");
}

static void test_mxfp8_a(void **state)
{
    (void)state;
    check_small_model("mxfp8-a");
}

/* Dense models of other families: no selection, the cache is paged all the same. */
static void test_llama_a(void **state)
{
    (void)state;
    check_small_model("llama-a");
}

static void test_qwen3_a(void **state)
{
    (void)state;
    check_small_model("qwen3-a");
}

static void test_tiny_b(void **state)
{
    (void)state;
    const int32_t chunks[] = {33, 256};
    check_large_model("tiny-b", chunks, 2, 40);
}

static void test_tiny_m3shape(void **state)
{
    (void)state;
    const int32_t chunks[] = {300, 1024};
    check_large_model("tiny-m3shape", chunks, 2, 20);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tiny_a),  cmocka_unit_test(test_mxfp8_a),
        cmocka_unit_test(test_llama_a), cmocka_unit_test(test_qwen3_a),
        cmocka_unit_test(test_tiny_b),  cmocka_unit_test(test_tiny_m3shape),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
