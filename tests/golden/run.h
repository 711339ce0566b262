/* Running a model under test: open it, feed tokens in some cut, keep everything that comes out. */
#ifndef MSA_TESTS_GOLDEN_RUN_H
#define MSA_TESTS_GOLDEN_RUN_H

#include "msa/msa.h"

/* The backend that MSA_TEST_BACKEND asks for, or NULL. Where it cannot be had the program is
 * skipped.
 */
const char *test_backend(void);

/* A model opened for one backend (NULL: test_backend, or else the default), ISA and thread count.
 */
typedef struct subject {
    msa_context *ctx;
    msa_model *model;
    msa_model_info info;
} subject;

void subject_open(subject *s, const char *dir, const char *backend, const char *isa,
                  int32_t n_threads);
void subject_close(subject *s);

/* An engine with activations of `dtype` and all caches of `cache_dtype`. */
msa_engine *engine_make(const subject *s, msa_dtype dtype, msa_dtype cache_dtype,
                        int64_t max_tokens, int32_t chunk_tokens, int32_t max_sessions,
                        int32_t attention);

/* What a run produced, for tokens 0..n_tokens-1 in order. */
typedef struct record {
    int64_t n_tokens;
    int32_t n_layers, n_sparse_layers, n_kv_heads, topk;
    int64_t vocab, hidden;
    float *logits;   /* [n_tokens, vocab] */
    float **outputs; /* [n_layers] of [n_tokens, hidden] */
    int32_t *
        *blocks; /* [n_layers] of [n_tokens, Hkv, K]; -1 throughout where nothing was selected */
} record;

record *record_make(const subject *s, int64_t n_tokens);
void record_free(record *r);

/* Append `n_tokens` tokens to a session in one forward pass and record them. */
void feed(msa_engine *engine, msa_session *session, const int32_t *tokens, int64_t n_tokens,
          record *r);

/* Tokens 0..n_tokens-1 in a fresh session: chunks of chunk_tokens until decode_from, then one by
 * one. */
record *run_tokens(const subject *s, const int32_t *tokens, int64_t n_tokens, msa_dtype dtype,
                   msa_dtype cache_dtype, int32_t chunk_tokens, int64_t decode_from,
                   int32_t attention);

/* Largest |a - b| over n values; NaN anywhere gives infinity. */
double largest_difference(const float *a, const float *b, int64_t n);
double largest_value(const float *a, int64_t n);
double rms_difference(const float *a, const float *b, int64_t n);

#endif
