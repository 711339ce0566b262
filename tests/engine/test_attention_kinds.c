/* Attention kinds other than MSA (docs/attention-kinds.md) as layers of a model: chunks and decode
 * agree with one pass of the reference, and each kind meets its identity with full attention. */
#include "engine/fixture.h"
#include "harness/cmocka_all.h"
#include "harness/reduced.h"
#include "model/make_preset.h"
#include "msa/memory.h"
#include "train/walk.h"

#include <math.h>
#include <stdio.h>

/* Let the local block compete: another digit in config.json. */
static void unforce_local_block(const char *dir)
{
    static const char key[] = "\"sparse_local_block\": ";
    char path[160], text[8192];
    snprintf(path, sizeof(path), "%s/config.json", dir);
    FILE *file = fopen(path, "r+");
    assert_non_null(file);
    text[fread(text, 1, sizeof(text) - 1, file)] = '\0';
    const char *at = strstr(text, key);
    assert_non_null(at);
    assert_int_equal(fseek(file, (long)(at - text) + (long)sizeof(key) - 1, SEEK_SET), 0);
    assert_int_equal(fputc('0', file), '0');
    fclose(file);
}

/* Blocks of 16, so that MODEL_TOKENS make ten. */
static const char *make(const char *name, const char *attention)
{
    static char dir[128];
    const msa__preset preset = {.name = "kind",
                                .description = "",
                                .hidden_size = 64,
                                .n_layers = 3,
                                .n_dense_layers = 1,
                                .n_q_heads = 4,
                                .n_kv_heads = 2,
                                .head_dim = 32,
                                .block_size = 16,
                                .topk_blocks = 3,
                                .n_experts = 6,
                                .n_experts_per_token = 3,
                                .expert_width = 32,
                                .shared_width = 64,
                                .dense_width = 96,
                                .max_positions = 1024,
                                .attention = attention};
    snprintf(dir, sizeof(dir), "%s", temporary_folder(name));
    EXPECT_OK(msa__preset_make(dir, &preset, 5, NULL, NULL));
    if (strstr(name, "unforced")) unforce_local_block(dir);
    return dir;
}

static record *run(const char *dir, const char *backend, int32_t chunk, int64_t decode_from)
{
    subject s;
    subject_open(&s, dir, backend, NULL, 2);
    record *r = run_tokens(&s, fixture_tokens(0), MODEL_TOKENS, MSA_DTYPE_F32, MSA_DTYPE_F32, chunk,
                           decode_from, MSA_ATTENTION_SPARSE);
    subject_close(&s);
    return r;
}

/* Logits of tokens 0..n-1. */
static void expect_close_logits(const char *what, const record *a, const record *b, int64_t n)
{
    double largest = largest_value(a->logits, n * a->vocab);
    double difference = largest_difference(a->logits, b->logits, n * a->vocab);
    if (!(difference <= 2e-5 * largest)) {
        fail_msg("%s: logits differ by %g of %g", what, difference, largest);
    }
}

typedef struct {
    const char *name, *attention;
} kind;

#define THREE(kind)                                                                                \
    "\"layer_types\": [\"" kind "\", \"" kind "\", \"" kind "\"], \"index_block_size\": 16"

#define DSA(dim, topk) ", \"dsa_index_heads\": 3, \"dsa_index_dim\": " #dim ", \"dsa_topk\": " #topk

static const kind kinds[] = {
    {"swa", THREE("sliding_attention") ", \"sliding_window\": 21"},
    {"hybrid", "\"layer_types\": [\"sliding_attention\", \"full_attention\", "
               "\"minimax_m3_sparse\"], \"sliding_window\": 21"},
    {"msa-unforced", THREE("minimax_m3_sparse")},
    {"window-control", THREE("window_control") ", \"window_control_blocks\": 3"},
    {"moba", THREE("moba") ", \"moba_block_size\": 32, \"moba_topk\": 2"},
    {"lightning", THREE("lightning")},
    {"lightning-hybrid",
     "\"layer_types\": [\"lightning\", \"lightning\", \"moba\"], \"index_block_size\": 16, "
     "\"moba_block_size\": 16, \"moba_topk\": 3"},
    {"moba-group", THREE("moba_group") ", \"moba_block_size\": 16, \"moba_topk\": 3"},
    {"dsa", THREE("dsa") DSA(48, 20)},
    {"dsa-hybrid",
     "\"layer_types\": [\"dsa\", \"minimax_m3_sparse\", \"full_attention\"]" DSA(32, 40)},
};

static void test_chunks_and_decode_are_one_pass(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
        const char *dir = make(kinds[i].name, kinds[i].attention);
        const char *backend = test_backend() ? test_backend() : "cpu";
        const char *first = test_is_reduced() ? backend : "ref";
        record *expected = run(dir, first, MODEL_TOKENS, MODEL_TOKENS);
        record *whole = run(dir, backend, MODEL_TOKENS, MODEL_TOKENS);
        record *pieces = run(dir, backend, 13, 120);
        expect_close_logits(kinds[i].name, expected, whole, MODEL_TOKENS);
        expect_close_logits(kinds[i].name, expected, pieces, MODEL_TOKENS);
        record_free(expected);
        record_free(whole);
        record_free(pieces);
    }
}

/* -log softmax of a row of logits at the next token. */
static double loss_of(const float *logits, int64_t vocab, int32_t target)
{
    double largest = (double)logits[0], sum = 0;
    for (int64_t i = 1; i < vocab; i++) largest = fmax(largest, (double)logits[i]);
    for (int64_t i = 0; i < vocab; i++) sum += exp((double)logits[i] - largest);
    return log(sum) + largest - (double)logits[target];
}

/* The way up of training over packed keys, after another document, is the pass over a cache. */
static void expect_training_reads_the_same(const char *name, const char *dir)
{
    enum { BEFORE = 37, N = BEFORE + MODEL_TOKENS };
    static const int32_t cu_seqlens[] = {0, BEFORE, N};
    int32_t tokens[N], targets[N], positions[N];
    float loss[N];
    for (int32_t i = 0; i < N; i++) {
        positions[i] = i < BEFORE ? i : i - BEFORE;
        tokens[i] = fixture_tokens(i < BEFORE)[positions[i]];
        targets[i] = -1;
        if (i > 0) targets[i - 1] = tokens[i];
    }
    subject s;
    msa__walk walk;
    subject_open(&s, dir, test_backend(), NULL, 2);
    msa__walk_args args = {.ctx = s.ctx,
                           .config = &s.model->config,
                           .dtype = MSA_DTYPE_F32,
                           .keep = MSA__KEEP_NOTHING,
                           .max_tokens = N};
    const msa__walk_batch batch = {tokens, targets, positions, cu_seqlens, N, 2};
    EXPECT_OK(msa_model_load(s.model, NULL, NULL));
    args.weights = msa__model_weights(s.model);
    EXPECT_OK(msa__walk_create(&walk, &args));
    walk.mode = (msa__walk_mode){.phase = MSA__PHASE_SPARSE};
    EXPECT_OK(msa__walk_forward(&walk, &batch));
    EXPECT_OK(msa__walk_loss(&walk, 0));
    EXPECT_OK(msa_memory_download(s.ctx, loss, walk.loss, sizeof(loss)));
    msa__walk_destroy(&walk);
    record *r = run_tokens(&s, fixture_tokens(0), MODEL_TOKENS, MSA_DTYPE_F32, MSA_DTYPE_F32, 64,
                           MODEL_TOKENS, MSA_ATTENTION_SPARSE);
    for (int32_t i = 0; i + 1 < MODEL_TOKENS; i++) {
        double expected = loss_of(r->logits + i * r->vocab, r->vocab, tokens[BEFORE + i + 1]);
        if (fabs(expected - (double)loss[BEFORE + i]) <= 2e-5 * expected) continue;
        fail_msg("%s: token %d: loss %g in training, %g in the engine", name, i,
                 (double)loss[BEFORE + i], expected);
    }
    record_free(r);
    subject_close(&s);
}

static void test_training_reads_the_same(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
        char name[48];
        snprintf(name, sizeof(name), "training-%s", kinds[i].name);
        expect_training_reads_the_same(kinds[i].name, make(name, kinds[i].attention));
    }
}

/* A kind is full attention for the tokens that see no more than `n_equal`, and something else
 * after them. */
typedef struct {
    const char *name, *attention;
    int64_t n_equal;
} identity;

static const identity identities[] = {
    {"swa-wide", THREE("sliding_attention") ", \"sliding_window\": 150", MODEL_TOKENS},
    {"swa-narrow", THREE("sliding_attention") ", \"sliding_window\": 40", 40},
    {"control-all", THREE("window_control") ", \"window_control_blocks\": 10", MODEL_TOKENS},
    {"control-4", THREE("window_control") ", \"window_control_blocks\": 4", 64},
    {"moba-all", THREE("moba") ", \"moba_block_size\": 16, \"moba_topk\": 10", MODEL_TOKENS},
    {"moba-2", THREE("moba") ", \"moba_block_size\": 32, \"moba_topk\": 2", 64},
    {"moba-group-3", THREE("moba_group") ", \"moba_block_size\": 16, \"moba_topk\": 3", 48},
    {"dsa-all", THREE("dsa") DSA(48, 150), MODEL_TOKENS},
    {"dsa-40", THREE("dsa") DSA(16, 40), 40},
};

static void test_what_sees_everything_is_full_attention(void **state)
{
    (void)state;
    record *full = run(make("full", THREE("full_attention")), test_backend(), 64, MODEL_TOKENS);
    for (size_t i = 0; i < sizeof(identities) / sizeof(identities[0]); i++) {
        const identity *id = &identities[i];
        record *r = run(make(id->name, id->attention), test_backend(), 64, MODEL_TOKENS);
        expect_close_logits(id->name, full, r, id->n_equal);
        for (int64_t t = id->n_equal; t < MODEL_TOKENS; t++) {
            int64_t row = t * r->vocab;
            if (largest_difference(full->logits + row, r->logits + row, r->vocab) > 0) continue;
            fail_msg("%s: token %d does not see that keys are missing", id->name, (int)t);
        }
        record_free(r);
    }
    record_free(full);
}

/* ---- sessions -------------------------------------------------------------------------------- */

/* The session's logits are those of a fresh session that reads its tokens: to the bit where nothing
 * but keys is kept, else within rounding. */
static void expect_as_if_fresh(msa_engine *engine, const msa_session *session, int exact)
{
    msa_session *fresh = session_make(engine);
    EXPECT_OK(msa_session_prefill(fresh, msa_session_tokens(session), msa_session_length(session),
                                  NULL, NULL));
    const float *got = msa_session_logits(session), *want = msa_session_logits(fresh);
    if (exact) {
        expect_same_logits(session, fresh, 256);
    } else if (!(largest_difference(got, want, 256) <= 2e-5 * largest_value(want, 256))) {
        fail_msg("logits differ by %g", largest_difference(got, want, 256));
    }
    msa_session_destroy(fresh);
}

static msa_status stop_after_the_last_layer(void *user, int32_t layer, const msa_tensor *output)
{
    (void)user;
    (void)output;
    return layer == 2 ? MSA_ECANCELED : MSA_OK;
}

/* Three tokens that a tap stops are as if they had never been. */
static void expect_failed_pass_changes_nothing(msa_engine *engine, msa_session *session,
                                               const int32_t *tokens)
{
    msa_session *fork;
    msa_taps taps = {NULL, stop_after_the_last_layer, NULL};
    msa_batch_item item = {.session = session, .tokens = tokens, .n_tokens = 3};
    EXPECT_OK(msa_session_fork(&fork, session));
    assert_int_equal(msa_engine_forward(engine, &item, 1, &taps), MSA_ECANCELED);
    advance(engine, session, tokens + 5, 1);
    advance(engine, fork, tokens + 5, 1);
    expect_same_logits(session, fork, 256);
    msa_session_destroy(fork);
}

/* Forks, truncation across pages and a session file, each followed by more tokens. */
static void check_sessions(const char *dir, msa_dtype cache_dtype, int has_states)
{
    subject s;
    subject_open(&s, dir, NULL, NULL, 2);
    msa_engine *engine =
        engine_make(&s, MSA_DTYPE_F32, cache_dtype, 1024, 40, 4, MSA_ATTENTION_SPARSE);
    const int32_t *a = fixture_tokens(0), *b = fixture_tokens(1);
    msa_session *first = session_make(engine), *fork, *loaded = session_make(engine);
    EXPECT_OK(msa_session_prefill(first, a, 100, NULL, NULL));
    EXPECT_OK(msa_session_fork(&fork, first));
    EXPECT_OK(msa_session_prefill(fork, b, 50, NULL, NULL));
    EXPECT_OK(msa_session_prefill(first, a + 100, 45, NULL, NULL));
    expect_as_if_fresh(engine, fork, !has_states);
    expect_as_if_fresh(engine, first, !has_states);
    if (has_states) {
        EXPECT_FAIL(MSA_EUNSUPPORTED, "n_tokens = 70, must be 0 or 145",
                    msa_session_truncate(first, 70));
        EXPECT_OK(msa_session_truncate(first, 0));
    } else {
        EXPECT_OK(msa_session_truncate(first, 70));
    }
    EXPECT_OK(msa_session_prefill(first, b + 60, 80, NULL, NULL));
    for (int i = 0; i < 20; i++) advance(engine, first, a + i, 1);
    expect_as_if_fresh(engine, first, !has_states);
    expect_failed_pass_changes_nothing(engine, first, b);
    const char *path = temporary_file("session.msa");
    EXPECT_OK(msa_session_save(first, path));
    EXPECT_OK(msa_session_load(loaded, path));
    for (int i = 0; i < 20; i++) advance(engine, loaded, b + i, 1);
    expect_as_if_fresh(engine, loaded, !has_states);
    msa_session_destroy(loaded);
    msa_session_destroy(fork);
    msa_session_destroy(first);
    msa_engine_destroy(engine);
    subject_close(&s);
}

static void test_sessions_share_pages(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
        char name[48];
        snprintf(name, sizeof(name), "sessions-%s", kinds[i].name);
        const char *dir = make(name, kinds[i].attention);
        int has_states = strstr(kinds[i].attention, "lightning") != NULL;
        check_sessions(dir, MSA_DTYPE_F32, has_states);
        check_sessions(dir, MSA_DTYPE_F8_E4M3, has_states);
    }
}

static int remove_files(void **state)
{
    (void)state;
    remove_temporary_files();
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_chunks_and_decode_are_one_pass),
        cmocka_unit_test(test_training_reads_the_same),
        cmocka_unit_test(test_what_sees_everything_is_full_attention),
        cmocka_unit_test(test_sessions_share_pages),
    };
    return cmocka_run_group_tests(tests, NULL, remove_files);
}
