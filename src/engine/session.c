/* Sessions: one sequence each, its tokens, its last logits and its cache pages. */
#include "base/alloc.h"
#include "base/arena.h"
#include "base/args.h"
#include "base/error.h"
#include "engine/engine.h"
#include "msa/memory.h"

#include <string.h>

static msa_status check_session(const char *op, const msa_session *session)
{
    if (session) return MSA_OK;
    return MSA_FAIL(MSA_EINVAL, "%s: session = NULL, must be a session", op);
}

static size_t logits_bytes(const msa_engine *engine)
{
    return (size_t)engine->model->config.vocab_size * sizeof(float);
}

static void lay_out(msa_session **session, const msa_engine *engine, msa__arena *arena,
                    int32_t **tokens)
{
    *session = msa__arena_take(arena, 1, sizeof(**session));
    *tokens = msa__arena_take(arena, engine->session_tokens, sizeof(**tokens));
}

/* A session without a cache sequence. Token memory is touched only as tokens arrive. */
static msa_status allocate(msa_session **out, msa_engine *engine)
{
    const msa_allocator *allocator = msa__context_allocator(engine->ctx);
    msa_session *session;
    int32_t *tokens;
    msa__arena arena = {NULL, 0, 0};
    lay_out(&session, engine, &arena, &tokens);
    void *memory = arena.overflow ? NULL : allocator->alloc(allocator->user, arena.used, 64);
    if (!memory) {
        return MSA_FAIL(MSA_ENOMEM, "session: no memory for %lld tokens",
                        (long long)engine->session_tokens);
    }
    arena = (msa__arena){memory, 0, 0};
    lay_out(&session, engine, &arena, &tokens);
    memset(session, 0, sizeof(*session));
    session->engine = engine;
    session->seq = -1;
    session->tokens = tokens;
    session->allocated_bytes = arena.used;
    void *logits;
    msa_status status = msa_memory_alloc_host(engine->ctx, logits_bytes(engine), &logits);
    if (status != MSA_OK) {
        msa_session_destroy(session);
        return status;
    }
    session->logits = logits;
    *out = session;
    return MSA_OK;
}

msa_status msa_session_create(msa_session **out, msa_engine *engine)
{
    if (!out) return MSA_FAIL(MSA_EINVAL, "session: out = NULL, must be a pointer");
    *out = NULL;
    if (!engine) return MSA_FAIL(MSA_EINVAL, "session: engine = NULL, must be an engine");
    msa_session *session;
    MSA_TRY(allocate(&session, engine));
    msa_status status = msa_cache_open(engine->cache, &session->seq);
    if (status != MSA_OK) {
        session->seq = -1;
        msa_session_destroy(session);
        return status;
    }
    *out = session;
    return MSA_OK;
}

msa_status msa_session_fork(msa_session **out, const msa_session *source)
{
    if (!out) return MSA_FAIL(MSA_EINVAL, "session_fork: out = NULL, must be a pointer");
    *out = NULL;
    MSA_TRY(check_session("session_fork", source));
    msa_session *session;
    MSA_TRY(allocate(&session, source->engine));
    msa_status status = msa_cache_fork(source->engine->cache, source->seq, &session->seq);
    if (status != MSA_OK) {
        session->seq = -1;
        msa_session_destroy(session);
        return status;
    }
    status = msa__forward_copy_state(&source->engine->forward, source->seq, session->seq);
    if (status != MSA_OK) {
        msa_session_destroy(session);
        return status;
    }
    session->n_tokens = source->n_tokens;
    session->has_logits = source->has_logits;
    memcpy(session->tokens, source->tokens, (size_t)source->n_tokens * sizeof(*source->tokens));
    if (source->has_logits) {
        memcpy(session->logits, source->logits, logits_bytes(source->engine));
    }
    *out = session;
    return MSA_OK;
}

void msa_session_destroy(msa_session *session)
{
    if (!session) return;
    const msa_engine *engine = session->engine;
    if (session->seq >= 0 && msa_cache_close(engine->cache, session->seq) != MSA_OK) return;
    const msa_allocator *allocator = msa__context_allocator(engine->ctx);
    msa_memory_free_host(engine->ctx, session->logits, logits_bytes(engine));
    allocator->free(allocator->user, session, session->allocated_bytes);
}

msa_status msa_session_prefill(msa_session *session, const int32_t *tokens, int64_t n_tokens,
                               msa_prefill_progress_fn progress, void *user)
{
    MSA_TRY(check_session("session_prefill", session));
    if (n_tokens < 0 || (n_tokens > 0 && !tokens)) {
        return MSA_FAIL(MSA_EINVAL, "session_prefill: n_tokens = %lld, must have tokens",
                        (long long)n_tokens);
    }
    for (int64_t done = 0; done < n_tokens;) {
        int64_t left = n_tokens - done;
        msa_batch_item item = {0};
        item.session = session;
        item.tokens = tokens + done;
        item.n_tokens =
            left < session->engine->args.chunk_tokens ? left : session->engine->args.chunk_tokens;
        MSA_TRY(msa__engine_run(session->engine, &item, 1, NULL, item.n_tokens == left));
        done += item.n_tokens;
        if (progress && progress(user, done, n_tokens) != 0 && done < n_tokens) {
            return MSA_FAIL(MSA_ECANCELED, "session_prefill: stopped by the caller at token %lld",
                            (long long)done);
        }
    }
    return MSA_OK;
}

int64_t msa_session_length(const msa_session *session)
{
    return session->n_tokens;
}

const int32_t *msa_session_tokens(const msa_session *session)
{
    return session->tokens;
}

const float *msa_session_logits(const msa_session *session)
{
    return session->has_logits ? session->logits : NULL;
}

msa_status msa_session_truncate(msa_session *session, int64_t n_tokens)
{
    MSA_TRY(check_session("session_truncate", session));
    if (n_tokens < 0 || n_tokens > session->n_tokens) {
        return MSA_FAIL(MSA_EINVAL, "session_truncate: n_tokens = %lld, must be 0..%lld",
                        (long long)n_tokens, (long long)session->n_tokens);
    }
    if (n_tokens == session->n_tokens) return MSA_OK;
    if (n_tokens > 0 && session->engine->forward.states.data) {
        return MSA_FAIL(MSA_EUNSUPPORTED,
                        "session_truncate: n_tokens = %lld, must be 0 or %lld: Lightning layers "
                        "keep only their newest state, fork the session where you will return to",
                        (long long)n_tokens, (long long)session->n_tokens);
    }
    MSA_TRY(msa_cache_truncate(session->engine->cache, session->seq, n_tokens));
    session->n_tokens = n_tokens;
    session->has_logits = 0;
    return MSA_OK;
}

msa_status msa_session_sample(msa_session *session, const msa_sample_args *caller_args,
                              int32_t *token)
{
    MSA_TRY(check_session("session_sample", session));
    msa_sample_args args;
    MSA_TRY(msa__args_copy("session_sample", &args, sizeof(args), caller_args));
    if (!session->has_logits) {
        return MSA_FAIL(MSA_EINVAL, "session_sample: the session has no logits, run a token first");
    }
    const msa_engine *engine = session->engine;
    args.struct_size = (uint32_t)sizeof(args);
    args.logits = session->logits;
    args.vocab = engine->model->config.vocab_size;
    args.recent = session->tokens;
    args.n_recent = session->n_tokens;
    args.draw = (uint64_t)session->n_tokens;
    return msa_sample(&args, engine->sample_workspace, engine->sample_workspace_bytes, token);
}

msa_status msa_session_get_stats(const msa_session *session, msa_session_stats *stats)
{
    MSA_TRY(check_session("session_get_stats", session));
    msa_session_stats ours;
    MSA_TRY(msa__args_copy("session_get_stats", &ours, sizeof(ours), stats));
    int64_t block = session->engine->model->config.block_size;
    uint32_t caller_size = ours.struct_size;
    ours.blocks_read = session->blocks_read;
    ours.blocks_visible = session->blocks_visible;
    ours.kv_bytes = msa__ceil_div(session->n_tokens, block) * block *
                    msa_cache_bytes_per_token(session->engine->cache);
    memcpy(stats, &ours, caller_size < sizeof(ours) ? caller_size : sizeof(ours));
    return MSA_OK;
}
