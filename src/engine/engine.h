/* What engine.c, session.c and session_file.c share. */
#ifndef MSA_ENGINE_ENGINE_H
#define MSA_ENGINE_ENGINE_H

#include "model/forward.h"

struct msa_engine {
    msa_context *ctx;
    const msa_model *model;
    msa_engine_args args;   /* completed: no zero stands for a default */
    int64_t session_tokens; /* longest sequence: what the pool and the model's positions allow */
    int32_t max_batch;      /* sequences in one forward pass */
    msa_cache *cache;
    msa__forward forward;

    /* the batch being run */
    int32_t *tokens, *positions;   /* [chunk_tokens] */
    int32_t *cu_seqlens;           /* [max_batch + 1] */
    int32_t *seqs;                 /* [max_batch] */
    msa__logits_request *requests; /* [max_batch] */
    void *sample_workspace;
    size_t sample_workspace_bytes;
    void *arena;
    size_t arena_bytes;
};

struct msa_session {
    msa_engine *engine;
    int32_t seq; /* in the cache */
    int32_t has_logits;
    int64_t n_tokens;
    int32_t *tokens; /* [session_tokens] */
    float *logits;   /* [vocab] after the last token, when has_logits; page-locked */
    int64_t blocks_read, blocks_visible;
    size_t allocated_bytes; /* of the session and its tokens in one piece */
};

/* One forward pass. Without keep_logits the sessions' last logits are not computed (and not kept),
 * except where an item asks for its own: prompt chunks before the last need none. */
msa_status msa__engine_run(msa_engine *engine, const msa_batch_item *items, int32_t n_items,
                           const msa_taps *taps, int32_t keep_logits);

#endif
