/* See run.h. */
#include "golden/run.h"

#include "harness/cmocka_all.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

const char *test_backend(void)
{
    return getenv("MSA_TEST_BACKEND");
}

void subject_open(subject *s, const char *dir, const char *backend, const char *isa,
                  int32_t n_threads)
{
    msa_context_args args;
    msa_context_args_init(&args);
    args.backend = backend ? backend : test_backend();
    args.cpu_isa = isa;
    args.n_threads = n_threads;
    msa_status status = msa_context_create(&s->ctx, &args);
    if (status == MSA_EUNSUPPORTED && test_backend()) {
        printf("skipped: %s\n", msa_last_error());
        exit(77);
    }
    EXPECT_OK(status);
    EXPECT_OK(msa_model_open(&s->model, s->ctx, dir));
    msa_model_info_init(&s->info);
    EXPECT_OK(msa_model_get_info(s->model, &s->info));
}

void subject_close(subject *s)
{
    msa_model_close(s->model);
    msa_context_destroy(s->ctx);
}

msa_engine *engine_make(const subject *s, msa_dtype dtype, msa_dtype cache_dtype,
                        int64_t max_tokens, int32_t chunk_tokens, int32_t max_sessions,
                        int32_t attention)
{
    msa_engine *engine;
    msa_engine_args args;
    msa_engine_args_init(&args);
    args.activation_dtype = dtype;
    args.k_dtype = args.v_dtype = args.k_index_dtype = cache_dtype;
    args.max_tokens = max_tokens;
    args.chunk_tokens = chunk_tokens;
    args.max_sessions = max_sessions;
    args.attention = attention;
    EXPECT_OK(msa_engine_create(&engine, s->ctx, s->model, &args));
    return engine;
}

record *record_make(const subject *s, int64_t n_tokens)
{
    record *r = calloc(1, sizeof(*r));
    assert_non_null(r);
    r->n_layers = s->info.n_layers;
    r->n_sparse_layers = s->info.n_sparse_layers;
    r->n_kv_heads = s->info.n_kv_heads;
    r->topk = s->info.topk_blocks;
    r->vocab = s->info.vocab_size;
    r->hidden = s->info.hidden_size;
    r->logits = calloc((size_t)(n_tokens * r->vocab), sizeof(float));
    r->outputs = calloc((size_t)r->n_layers, sizeof(*r->outputs));
    r->blocks = calloc((size_t)r->n_layers, sizeof(*r->blocks));
    assert_true(r->logits && r->outputs && r->blocks);
    for (int32_t layer = 0; layer < r->n_layers; layer++) {
        size_t n_ids = (size_t)(n_tokens * r->n_kv_heads * r->topk);
        r->outputs[layer] = calloc((size_t)(n_tokens * r->hidden), sizeof(float));
        r->blocks[layer] = malloc(n_ids * sizeof(int32_t) + 1);
        assert_true(r->outputs[layer] && r->blocks[layer]);
        memset(r->blocks[layer], 0xff, n_ids * sizeof(int32_t));
    }
    return r;
}

void record_free(record *r)
{
    for (int32_t layer = 0; layer < r->n_layers; layer++) {
        free(r->outputs[layer]);
        free(r->blocks[layer]);
    }
    free(r->outputs);
    free(r->blocks);
    free(r->logits);
    free(r);
}

static msa_status keep_output(void *user, int32_t layer, const msa_tensor *output)
{
    record *r = user;
    memcpy(r->outputs[layer] + r->n_tokens * r->hidden, output->data,
           (size_t)(output->shape[0] * r->hidden) * sizeof(float));
    return MSA_OK;
}

static msa_status keep_blocks(void *user, int32_t layer, const msa_tensor *blocks)
{
    record *r = user;
    int64_t row = (int64_t)r->n_kv_heads * r->topk;
    memcpy(r->blocks[layer] + r->n_tokens * row, blocks->data,
           (size_t)(blocks->shape[0] * row) * sizeof(int32_t));
    return MSA_OK;
}

void feed(msa_engine *engine, msa_session *session, const int32_t *tokens, int64_t n_tokens,
          record *r)
{
    msa_taps taps = {r, keep_output, keep_blocks};
    msa_batch_item item = {0};
    item.session = session;
    item.tokens = tokens;
    item.n_tokens = n_tokens;
    item.logits = r->logits + r->n_tokens * r->vocab;
    item.all_logits = 1;
    EXPECT_OK(msa_engine_forward(engine, &item, 1, &taps));
    r->n_tokens += n_tokens;
}

record *run_tokens(const subject *s, const int32_t *tokens, int64_t n_tokens, msa_dtype dtype,
                   msa_dtype cache_dtype, int32_t chunk_tokens, int64_t decode_from,
                   int32_t attention)
{
    record *r = record_make(s, n_tokens);
    msa_session *session;
    msa_engine *engine = engine_make(s, dtype, cache_dtype, n_tokens, chunk_tokens, 1, attention);
    EXPECT_OK(msa_session_create(&session, engine));
    while (r->n_tokens < n_tokens) {
        int64_t left = r->n_tokens < decode_from ? decode_from - r->n_tokens : 1;
        if (left > n_tokens - r->n_tokens) left = n_tokens - r->n_tokens;
        feed(engine, session, tokens + r->n_tokens, left < chunk_tokens ? left : chunk_tokens, r);
    }
    msa_session_destroy(session);
    msa_engine_destroy(engine);
    return r;
}

double largest_difference(const float *a, const float *b, int64_t n)
{
    double largest = 0;
    for (int64_t i = 0; i < n; i++) {
        double d = fabs((double)a[i] - (double)b[i]);
        if (!(d <= largest)) largest = isnan(d) ? (double)INFINITY : d;
    }
    return largest;
}

double largest_value(const float *a, int64_t n)
{
    double largest = 0;
    for (int64_t i = 0; i < n; i++) largest = fmax(largest, fabs((double)a[i]));
    return largest;
}

double rms_difference(const float *a, const float *b, int64_t n)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++) {
        double d = (double)a[i] - (double)b[i];
        sum += d * d;
    }
    return sqrt(sum / (double)n);
}
