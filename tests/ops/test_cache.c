/* The cache: lanes in lockstep, copy on write, truncation, exhaustion, and long random histories
 * against a model that keeps every sequence as a plain list of tokens. */
#include "harness/cmocka_all.h"

#include "base/rng.h"
#include "msa/cache.h"
#include "ops/kv_tile.h"

#include <stdlib.h>

#define N_LAYERS   3
#define N_KV_HEADS 2
#define HEAD_DIM   16
#define INDEX_DIM  32
#define PAGE       16

static const uint8_t layer_has_index[N_LAYERS] = {0, 1, 1};

static msa_context *make_context(void)
{
    msa_context_args args;
    msa_context_args_init(&args);
    args.backend = "ref";
    args.n_threads = 1;
    msa_context *ctx;
    EXPECT_OK(msa_context_create(&ctx, &args));
    return ctx;
}

static void cache_args(msa_cache_args *args, int32_t max_seqs, int64_t max_tokens)
{
    msa_cache_args_init(args);
    args->n_layers = N_LAYERS;
    args->n_kv_heads = N_KV_HEADS;
    args->head_dim = HEAD_DIM;
    args->index_dim = INDEX_DIM;
    args->block_size = PAGE;
    args->max_seqs = max_seqs;
    args->max_tokens = max_tokens;
    args->layer_has_index = layer_has_index;
}

static msa_cache *make_cache(msa_context *ctx, int32_t max_seqs, int64_t max_tokens)
{
    msa_cache_args args;
    cache_args(&args, max_seqs, max_tokens);
    msa_cache *cache;
    EXPECT_OK(msa_cache_create(&cache, ctx, &args));
    return cache;
}

/* What a token holds in a lane: a number no other (token, layer, lane, head) has. */
static float token_mark(int32_t token, int32_t layer, int32_t lane, int32_t head)
{
    return (float)(((token * N_LAYERS + layer) * 3 + lane) * N_KV_HEADS + head + 1);
}

/* Visit both ends of every lane row of one token: write its mark, or count those that differ. */
static int visit_token(const msa_kv_view *view, int64_t position, int32_t layer, int32_t token,
                       int write)
{
    const msa_tensor *lanes[3] = {&view->k, &view->v, &view->k_index};
    int n_wrong = 0;
    for (int32_t lane = 0; lane < 3; lane++) {
        if (!lanes[lane]->data) continue;
        for (int32_t head = 0; head < (lane == 2 ? 1 : N_KV_HEADS); head++) {
            msa__kv_tile tile = msa__kv_block(view, lanes[lane], 0, position / PAGE, head, PAGE);
            float *row = (float *)(uintptr_t)tile.data + position % PAGE * tile.row_stride;
            int64_t last = lanes[lane]->shape[lanes[lane]->n_dims - 1] - 1;
            float mark = token_mark(token, layer, lane, head);
            if (write) row[0] = row[last] = mark;
            n_wrong += row[0] != mark || row[last] != mark;
        }
    }
    return n_wrong;
}

/* Write or compare tokens first..first+n-1 of a sequence in every layer. */
static void visit_tokens(const msa_cache *cache, int32_t seq, int64_t first, int64_t n,
                         const int32_t *tokens, int write)
{
    int32_t table[64], length;
    for (int32_t layer = 0; layer < N_LAYERS; layer++) {
        msa_kv_view view;
        EXPECT_OK(msa_cache_view(cache, layer, &seq, 1, table, 64, &length, &view));
        assert_int_equal(length, msa_cache_length(cache, seq));
        int n_wrong = 0;
        for (int64_t i = first; i < first + n; i++) {
            n_wrong += visit_token(&view, i, layer, tokens[i], write);
        }
        assert_int_equal(n_wrong, 0);
    }
}

static void test_view_describes_the_lanes(void **state)
{
    (void)state;
    msa_context *ctx = make_context();
    msa_cache *cache = make_cache(ctx, 2, 100);
    assert_int_equal(msa_cache_free_tokens(cache), 112); /* 7 pages */
    assert_int_equal(msa_cache_bytes_per_token(cache),
                     4 * (N_LAYERS * 2 * N_KV_HEADS * HEAD_DIM + 2 * INDEX_DIM));
    int32_t seq, table[7], length;
    EXPECT_OK(msa_cache_open(cache, &seq));
    EXPECT_OK(msa_cache_extend(cache, seq, PAGE + 1));
    msa_kv_view view;
    EXPECT_OK(msa_cache_view(cache, 0, &seq, 1, table, 7, &length, &view));
    assert_null(view.k_index.data);
    assert_int_equal(view.k_index.n_dims, 0);
    EXPECT_OK(msa_cache_view(cache, 1, &seq, 1, table, 7, &length, &view));
    assert_int_equal(view.k.n_dims, 4);
    assert_int_equal(view.k.shape[0], 7);
    assert_int_equal(view.k.shape[1], N_KV_HEADS);
    assert_int_equal(view.k.shape[2], PAGE);
    assert_int_equal(view.k.shape[3], HEAD_DIM);
    assert_int_equal(view.k_index.n_dims, 3);
    assert_int_equal(view.k_index.shape[2], INDEX_DIM);
    assert_int_equal(length, PAGE + 1);
    assert_int_equal(table[0], 0); /* a fresh pool hands out pages in order */
    assert_int_equal(table[1], 1);
    msa_cache_destroy(cache);
    msa_context_destroy(ctx);
}

static void test_fork_copies_on_write(void **state)
{
    (void)state;
    msa_context *ctx = make_context();
    msa_cache *cache = make_cache(ctx, 3, 8 * PAGE);
    int32_t parent, child, tokens[64], child_tokens[64];
    for (int32_t i = 0; i < 64; i++) tokens[i] = i;
    for (int32_t i = 0; i < 64; i++) child_tokens[i] = i < 20 ? i : 100 + i;
    EXPECT_OK(msa_cache_open(cache, &parent));
    EXPECT_OK(msa_cache_extend(cache, parent, 20));
    visit_tokens(cache, parent, 0, 20, tokens, 1);
    EXPECT_OK(msa_cache_fork(cache, parent, &child));
    assert_int_equal(msa_cache_free_tokens(cache), 6 * PAGE); /* nothing copied yet */
    EXPECT_OK(msa_cache_extend(cache, child, 5));             /* copies the partial page */
    assert_int_equal(msa_cache_free_tokens(cache), 5 * PAGE);
    visit_tokens(cache, child, 20, 5, child_tokens, 1);
    EXPECT_OK(msa_cache_extend(cache, parent, 5)); /* now the only owner: no copy */
    assert_int_equal(msa_cache_free_tokens(cache), 5 * PAGE);
    visit_tokens(cache, parent, 20, 5, tokens, 1);
    visit_tokens(cache, parent, 0, 25, tokens, 0);
    visit_tokens(cache, child, 0, 25, child_tokens, 0);
    EXPECT_OK(msa_cache_close(cache, parent));
    visit_tokens(cache, child, 0, 25, child_tokens, 0);
    EXPECT_OK(msa_cache_close(cache, child));
    assert_int_equal(msa_cache_free_tokens(cache), 8 * PAGE);
    msa_cache_destroy(cache);
    msa_context_destroy(ctx);
}

/* Shortening into a shared page leaves it shared; growing again copies it. */
static void test_truncate_into_a_shared_page(void **state)
{
    (void)state;
    msa_context *ctx = make_context();
    msa_cache *cache = make_cache(ctx, 2, 6 * PAGE);
    int32_t parent, child, tokens[64], child_tokens[64];
    for (int32_t i = 0; i < 64; i++) tokens[i] = i;
    for (int32_t i = 0; i < 64; i++) child_tokens[i] = i < 10 ? i : 200 + i;
    EXPECT_OK(msa_cache_open(cache, &parent));
    EXPECT_OK(msa_cache_extend(cache, parent, 3 * PAGE));
    visit_tokens(cache, parent, 0, 3 * PAGE, tokens, 1);
    EXPECT_OK(msa_cache_fork(cache, parent, &child));
    EXPECT_OK(msa_cache_truncate(cache, child, 10));
    assert_int_equal(msa_cache_length(cache, child), 10);
    EXPECT_OK(msa_cache_extend(cache, child, 10));
    visit_tokens(cache, child, 10, 10, child_tokens, 1);
    visit_tokens(cache, parent, 0, 3 * PAGE, tokens, 0);
    visit_tokens(cache, child, 0, 20, child_tokens, 0);
    msa_cache_destroy(cache);
    msa_context_destroy(ctx);
}

/* Growth inside a page keeps the version; a new, copied or released page changes it. */
static void test_page_versions_follow_the_pages(void **state)
{
    (void)state;
    msa_context *ctx = make_context();
    msa_cache *cache = make_cache(ctx, 2, 6 * PAGE);
    int32_t parent, child;
    assert_int_equal(msa_cache_page_version(cache, 0), -1);
    EXPECT_OK(msa_cache_open(cache, &parent));
    int64_t empty = msa_cache_page_version(cache, parent);
    EXPECT_OK(msa_cache_extend(cache, parent, 3));
    int64_t one_page = msa_cache_page_version(cache, parent);
    assert_int_not_equal(one_page, empty);
    EXPECT_OK(msa_cache_extend(cache, parent, PAGE - 3));
    EXPECT_OK(msa_cache_truncate(cache, parent, PAGE - 1));
    assert_int_equal(msa_cache_page_version(cache, parent), one_page);
    EXPECT_OK(msa_cache_fork(cache, parent, &child));
    int64_t forked = msa_cache_page_version(cache, child);
    assert_int_not_equal(forked, one_page);
    EXPECT_OK(msa_cache_extend(cache, child, 1)); /* a copy of the shared page */
    assert_int_not_equal(msa_cache_page_version(cache, child), forked);
    assert_int_equal(msa_cache_page_version(cache, parent), one_page);
    EXPECT_OK(msa_cache_extend(cache, parent, PAGE));
    assert_int_not_equal(msa_cache_page_version(cache, parent), one_page);
    int64_t two_pages = msa_cache_page_version(cache, parent);
    EXPECT_OK(msa_cache_truncate(cache, parent, 1));
    assert_int_not_equal(msa_cache_page_version(cache, parent), two_pages);
    int64_t last = msa_cache_page_version(cache, parent);
    EXPECT_OK(msa_cache_close(cache, parent));
    EXPECT_OK(msa_cache_open(cache, &parent));
    assert_true(msa_cache_page_version(cache, parent) > last); /* an id used again */
    msa_cache_destroy(cache);
    msa_context_destroy(ctx);
}

static void test_exhaustion_changes_nothing(void **state)
{
    (void)state;
    msa_context *ctx = make_context();
    msa_cache *cache = make_cache(ctx, 2, 3 * PAGE);
    int32_t a, b, c, tokens[64];
    for (int32_t i = 0; i < 64; i++) tokens[i] = i;
    EXPECT_OK(msa_cache_open(cache, &a));
    EXPECT_OK(msa_cache_extend(cache, a, 2 * PAGE - 1));
    visit_tokens(cache, a, 0, 2 * PAGE - 1, tokens, 1);
    EXPECT_OK(msa_cache_fork(cache, a, &b));
    EXPECT_FAIL(MSA_EBUSY, "max_seqs = 2", msa_cache_open(cache, &c));
    EXPECT_FAIL(MSA_EBUSY, "max_seqs = 2", msa_cache_fork(cache, a, &c));
    /* One copied page and one new page, of one free page. */
    EXPECT_FAIL(MSA_EBUSY, "cache_extend: n_tokens = 2, needs 2 pages of 1 free",
                msa_cache_extend(cache, b, 2));
    assert_int_equal(msa_cache_length(cache, b), 2 * PAGE - 1);
    assert_int_equal(msa_cache_free_tokens(cache), PAGE);
    visit_tokens(cache, b, 0, 2 * PAGE - 1, tokens, 0);
    EXPECT_OK(msa_cache_extend(cache, b, 1)); /* the copy alone fits */
    visit_tokens(cache, b, 0, 2 * PAGE - 1, tokens, 0);
    msa_cache_destroy(cache);
    msa_context_destroy(ctx);
}

static void test_wrong_arguments_are_named(void **state)
{
    (void)state;
    msa_context *ctx = make_context();
    msa_cache *cache = make_cache(ctx, 2, 4 * PAGE);
    int32_t seq, table[8], length, not_open = 1;
    msa_kv_view view;
    EXPECT_OK(msa_cache_open(cache, &seq));
    EXPECT_OK(msa_cache_extend(cache, seq, PAGE + 1));
    EXPECT_FAIL(MSA_EINVAL, "cache_open: seq = NULL", msa_cache_open(cache, NULL));
    EXPECT_FAIL(MSA_EINVAL, "cache_open: cache = NULL", msa_cache_open(NULL, &seq));
    EXPECT_FAIL(MSA_EINVAL, "cache_close: seq = 1, must be an open", msa_cache_close(cache, 1));
    EXPECT_FAIL(MSA_EINVAL, "cache_fork: seq = -1", msa_cache_fork(cache, -1, &seq));
    EXPECT_FAIL(MSA_EINVAL, "cache_extend: seq = 2", msa_cache_extend(cache, 2, 1));
    EXPECT_FAIL(MSA_EINVAL, "cache_extend: n_tokens = -1", msa_cache_extend(cache, seq, -1));
    EXPECT_FAIL(MSA_EINVAL, "cache_extend: n_tokens = 9223372036854775807",
                msa_cache_extend(cache, seq, INT64_MAX));
    EXPECT_FAIL(MSA_EINVAL, "cache_truncate: n_tokens = 18, must be 0..17",
                msa_cache_truncate(cache, seq, PAGE + 2));
    EXPECT_FAIL(MSA_EINVAL, "cache_view: layer = 3",
                msa_cache_view(cache, N_LAYERS, &seq, 1, table, 8, &length, &view));
    EXPECT_FAIL(MSA_EINVAL, "cache_view: table_stride = 1",
                msa_cache_view(cache, 0, &seq, 1, table, 1, &length, &view));
    EXPECT_FAIL(MSA_EINVAL, "cache_view: seq = 1",
                msa_cache_view(cache, 0, &not_open, 1, table, 8, &length, &view));
    EXPECT_FAIL(MSA_EINVAL, "cache_view: view = NULL",
                msa_cache_view(cache, 0, &seq, 1, table, 8, &length, NULL));
    assert_int_equal(msa_cache_length(cache, 1), -1);
    assert_int_equal(msa_cache_length(cache, 7), -1);
    msa_cache_destroy(cache);
    msa_context_destroy(ctx);
}

static void test_create_checks_its_arguments(void **state)
{
    (void)state;
    msa_context *ctx = make_context();
    msa_cache *cache;
    msa_cache_args args;
#define REJECTS(change, text)                                                                      \
    do {                                                                                           \
        cache_args(&args, 1, 64);                                                                  \
        change;                                                                                    \
        EXPECT_FAIL(MSA_EINVAL, text, msa_cache_create(&cache, ctx, &args));                       \
        assert_null(cache);                                                                        \
    } while (0)
    REJECTS(args.n_layers = 0, "cache_create: n_layers = 0");
    REJECTS(args.n_kv_heads = 0, "n_kv_heads = 0");
    REJECTS(args.head_dim = 24, "head_dim = 24, must be a multiple of 16");
    REJECTS(args.index_dim = 8, "index_dim = 8");
    REJECTS(args.index_dim = 0, "layer_has_index[1] = 1, must be 0 when index_dim = 0");
    REJECTS(args.block_size = 48, "block_size = 48, must be a power of two");
    REJECTS(args.max_seqs = -1, "max_seqs = -1");
    REJECTS(args.max_tokens = 0, "max_tokens = 0");
    REJECTS(args.k_dtype = MSA_DTYPE_F16, "k_dtype = 2 (f16), must be f32, bf16");
    REJECTS(args.k_scale = 2, "k_scale = 2, must be 0 or 1");
    REJECTS((args.v_dtype = MSA_DTYPE_F8_E4M3, args.v_scale = -1), "v_scale = -1");
    REJECTS(args.flags = 1, "args.flags = 1");
#undef REJECTS
    cache_args(&args, 1, 64);
    EXPECT_FAIL(MSA_EINVAL, "ctx = NULL", msa_cache_create(&cache, NULL, &args));
    EXPECT_FAIL(MSA_EINVAL, "out = NULL", msa_cache_create(NULL, ctx, &args));
    msa_cache_destroy(NULL);
    msa_context_destroy(ctx);
}

/* ---- random histories ------------------------------------------------------------------------ */

#define MAX_SEQS   5
#define POOL_PAGES 12

typedef struct model_seq {
    int open;
    int32_t length;
    int32_t tokens[POOL_PAGES * PAGE];
} model_seq;

typedef struct history {
    msa_cache *cache;
    model_seq seqs[MAX_SEQS];
    int32_t next_token;
    uint64_t counter;
} history;

static uint32_t draw(history *h, uint32_t below)
{
    uint32_t words[4];
    msa__philox(7, h->counter++, 0, words);
    return words[0] % below;
}

/* Pages in use, counted from the tables: equal page ids are one page. */
static int64_t count_pages(const history *h)
{
    uint8_t used[POOL_PAGES] = {0};
    int64_t n = 0;
    for (int32_t s = 0; s < MAX_SEQS; s++) {
        if (!h->seqs[s].open) continue;
        int32_t table[POOL_PAGES], length;
        msa_kv_view view;
        EXPECT_OK(msa_cache_view(h->cache, 0, &s, 1, table, POOL_PAGES, &length, &view));
        for (int32_t b = 0; b * PAGE < length; b++) {
            if (!used[table[b]]) n++;
            used[table[b]] = 1;
        }
    }
    return n;
}

static void step_extend(history *h, int32_t s)
{
    model_seq *seq = &h->seqs[s];
    int32_t n = (int32_t)draw(h, 2 * PAGE + 1);
    msa_status status = msa_cache_extend(h->cache, s, n);
    if (status == MSA_EBUSY) return; /* the comparison of all sequences follows */
    assert_int_equal(status, MSA_OK);
    for (int32_t i = 0; i < n; i++) seq->tokens[seq->length + i] = h->next_token++ % 10000;
    visit_tokens(h->cache, s, seq->length, n, seq->tokens, 1);
    seq->length += n;
}

static void step(history *h)
{
    int32_t s = (int32_t)draw(h, MAX_SEQS), new_seq;
    model_seq *seq = &h->seqs[s];
    uint32_t choice = draw(h, 10);
    if (!seq->open) {
        EXPECT_OK(msa_cache_open(h->cache, &new_seq));
        assert_false(h->seqs[new_seq].open);
        h->seqs[new_seq].open = 1;
        h->seqs[new_seq].length = 0;
    } else if (choice < 5) {
        step_extend(h, s);
    } else if (choice < 7) {
        seq->length = (int32_t)draw(h, (uint32_t)seq->length + 1);
        EXPECT_OK(msa_cache_truncate(h->cache, s, seq->length));
    } else if (choice < 9) {
        if (msa_cache_fork(h->cache, s, &new_seq) != MSA_OK) return;
        assert_false(h->seqs[new_seq].open);
        h->seqs[new_seq] = *seq;
    } else {
        EXPECT_OK(msa_cache_close(h->cache, s));
        seq->open = 0;
    }
}

static void test_random_histories_match_a_model(void **state)
{
    (void)state;
    msa_context *ctx = make_context();
    history *h = calloc(1, sizeof(*h));
    h->cache = make_cache(ctx, MAX_SEQS, POOL_PAGES * PAGE);
    for (int i = 0; i < 600; i++) {
        step(h);
        for (int32_t s = 0; s < MAX_SEQS; s++) {
            model_seq *seq = &h->seqs[s];
            assert_int_equal(msa_cache_length(h->cache, s), seq->open ? seq->length : -1);
            if (seq->open) visit_tokens(h->cache, s, 0, seq->length, seq->tokens, 0);
        }
        assert_int_equal(msa_cache_free_tokens(h->cache), (POOL_PAGES - count_pages(h)) * PAGE);
    }
    msa_cache_destroy(h->cache);
    free(h);
    msa_context_destroy(ctx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_view_describes_the_lanes),
        cmocka_unit_test(test_fork_copies_on_write),
        cmocka_unit_test(test_truncate_into_a_shared_page),
        cmocka_unit_test(test_page_versions_follow_the_pages),
        cmocka_unit_test(test_exhaustion_changes_nothing),
        cmocka_unit_test(test_wrong_arguments_are_named),
        cmocka_unit_test(test_create_checks_its_arguments),
        cmocka_unit_test(test_random_histories_match_a_model),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
