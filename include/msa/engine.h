/* The runtime in two nouns: an engine (a model and the cache pool it serves) and its sessions (one
 * sequence each). Tokens go in, logits come out; one rule: sessions of an engine are driven by one
 * thread at a time.
 */
#ifndef MSA_ENGINE_H
#define MSA_ENGINE_H

#include "msa/model.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct msa_engine msa_engine;
typedef struct msa_session msa_session;

/* How MSA layers attend. */
#define MSA_ATTENTION_SPARSE 0 /* as the model was made */
#define MSA_ATTENTION_DENSE 1  /* every layer over every key: the comparison */

typedef struct msa_engine_args {
    uint32_t struct_size;
    uint32_t flags;
    msa_dtype activation_dtype;                     /* f32 or bf16 (f16 too) */
    msa_dtype k_dtype, v_dtype, k_index_dtype;      /* f32, bf16 or fp8_e4m3 */
    int64_t max_tokens;                             /* pool capacity over all sessions, >= 1 */
    int32_t max_sessions;                           /* 0: 1 */
    int32_t chunk_tokens;                           /* prefill piece; 0: 512, on a device 8192 */
    int32_t attention;                              /* MSA_ATTENTION_… */
    /* On a device a shape of batch that comes again is recorded and from then on launched as a whole
     * (graph.h). 1: launch operators one by one, as taps make it do anyway. */
    int32_t no_graphs;
    /* 1: keep an eight-bit copy of the index keys, Di + 1 bytes a token and MSA layer, and let msa_select
     * scan it first. Selections and logits keep their bits; a GPU reads long prompts faster. */
    int32_t index8;
    int32_t reserved;
} msa_engine_args;
MSA_ARGS_INIT(msa_engine_args)

/* Ownership *out is owned: msa_engine_destroy; ctx and model are retained. The model is loaded
 *           (msa_model_load) if it was not.
 * Errors    MSA_EINVAL, MSA_ENOMEM, MSA_EDEVMEM */
MSA_API MSA_CHECK_RESULT msa_status msa_engine_create(msa_engine **out, msa_context *ctx,
                                                      const msa_model *model,
                                                      const msa_engine_args *args);
MSA_API void msa_engine_destroy(msa_engine *engine); /* after its sessions */

MSA_API MSA_CHECK_RESULT msa_status msa_session_create(msa_session **out, msa_engine *engine);
MSA_API void msa_session_destroy(msa_session *session);
/* A new session with the same history; shares cache pages until either writes. */
MSA_API MSA_CHECK_RESULT msa_status msa_session_fork(msa_session **out, const msa_session *session);

/* What the caller may watch while a forward pass runs; every tensor is f32/i32 and borrowed for the
 * call. Used by `msa logits --layers`; NULL members are not computed. */
typedef struct msa_taps {
    void *user;
    /* residual stream after a layer, [T, H] f32, rows in batch order */
    msa_status (*layer_output)(void *user, int32_t layer, const msa_tensor *output);
    /* selected blocks of an MSA layer, [T, Hkv, K] i32 */
    msa_status (*selected_blocks)(void *user, int32_t layer, const msa_tensor *blocks);
} msa_taps;

/* One piece of a batch: new tokens of one session. */
typedef struct msa_batch_item {
    msa_session *session;
    const int32_t *tokens; /* [n_tokens] */
    int64_t n_tokens;      /* >= 1 */
    float *logits;         /* out, optional: all_logits ? [n_tokens, vocab] : [vocab] of the last */
    int32_t all_logits;
    int32_t reserved;
} msa_batch_item;

/* Run one forward pass over new tokens of several sessions at once (prefill chunks and decode steps may
 * be mixed); at most chunk_tokens tokens in all. Each session's last logits are also kept for
 * msa_session_logits. Nothing is appended when the call fails.
 *
 * Errors    MSA_EINVAL a token outside the vocabulary, a session twice, too many tokens, a sequence
 *           beyond the model's positions;
 *           MSA_EBUSY the pool is full; MSA_ECANCELED by a tap
 */
MSA_API MSA_CHECK_RESULT msa_status msa_engine_forward(msa_engine *engine,
                                                       const msa_batch_item *items,
                                                       int32_t n_items, const msa_taps *taps);

/* Feed a long prompt in chunks; progress may be NULL and may return non-zero to stop between chunks
 * (MSA_ECANCELED; the chunks done stay). */
typedef int32_t (*msa_prefill_progress_fn)(void *user, int64_t done, int64_t total);
MSA_API MSA_CHECK_RESULT msa_status msa_session_prefill(msa_session *session, const int32_t *tokens,
                                                        int64_t n_tokens,
                                                        msa_prefill_progress_fn progress,
                                                        void *user);

MSA_API int64_t msa_session_length(const msa_session *session);
MSA_API const int32_t *msa_session_tokens(const msa_session *session); /* [length], borrowed */
/* [vocab] of the last token; NULL when there are none: in a session that is new, was truncated, or
 * whose prefill was stopped. */
MSA_API const float *msa_session_logits(const msa_session *session);
MSA_API MSA_CHECK_RESULT msa_status msa_session_truncate(msa_session *session, int64_t n_tokens);

/* Draw the next token from the last logits; args->logits, vocab, recent (every token), n_recent and
 * draw (the length) are filled in. MSA_EINVAL without logits. */
MSA_API MSA_CHECK_RESULT msa_status msa_session_sample(msa_session *session,
                                                       const msa_sample_args *args,
                                                       int32_t *token);

/* Save tokens, K, V, index K and the last logits to one file, or restore them into an empty session of
 * an engine with the same model shape and cache dtypes; continuing is bit-exact. The file is written
 * beside its name and renamed when whole.
 *
 * Errors    MSA_EIO; MSA_EFORMAT damaged file; MSA_EVERSION other model, shape or dtype, by name
 */
MSA_API MSA_CHECK_RESULT msa_status msa_session_save(const msa_session *session, const char *path);
MSA_API MSA_CHECK_RESULT msa_status msa_session_load(msa_session *session, const char *path);

/* Work done since the session began, summed over MSA layers, groups and tokens. */
typedef struct msa_session_stats {
    uint32_t struct_size;
    uint32_t flags;
    int64_t blocks_read, blocks_visible;
    int64_t kv_bytes; /* cache memory of this session's pages; forks count shared ones too */
} msa_session_stats;
MSA_ARGS_INIT(msa_session_stats)
MSA_API MSA_CHECK_RESULT msa_status msa_session_get_stats(const msa_session *session,
                                                          msa_session_stats *stats);

#ifdef __cplusplus
}
#endif
#endif
