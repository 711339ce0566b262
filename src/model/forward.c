/* Running one batch: its arrays to the operators, the operators, the logits to the caller. */
#include "model/forward_pass.h"

#include "base/arena.h"
#include "base/error.h"

#include <string.h>

/* ---- the arrays of a step ----------------------------------------------------------------- */

size_t msa__step_lay_out(void *memory, int32_t n_tokens, int32_t n_seqs, int32_t n_rows,
                         msa__step *step)
{
    msa__arena arena = {memory, 0, 0};
    step->tokens = msa__arena_take(&arena, n_tokens, sizeof(int32_t));
    step->positions = msa__arena_take(&arena, n_tokens, sizeof(int32_t));
    step->rows = msa__arena_take(&arena, n_rows, sizeof(int32_t));
    step->cu_seqlens = msa__arena_take(&arena, (int64_t)n_seqs + 1, sizeof(int32_t));
    step->kv_lens = msa__arena_take(&arena, n_seqs, sizeof(int32_t));
    step->state_in = msa__arena_take(&arena, n_seqs, sizeof(int32_t));
    step->state_out = msa__arena_take(&arena, n_seqs, sizeof(int32_t));
    return arena.used;
}

/* Tokens of a sequence whose logits are wanted. */
static int32_t wanted_rows(const msa__batch *batch, int32_t i)
{
    const msa__logits_request *request = &batch->requests[i];
    if (request->all) return batch->cu_seqlens[i + 1] - batch->cu_seqlens[i];
    return request->last != NULL;
}

static void fill_step(const msa__forward *f, const msa__batch *batch, const msa__step *step)
{
    size_t n_tokens = (size_t)batch->n_tokens, n_seqs = (size_t)batch->n_seqs;
    int32_t *row = step->rows;
    memcpy(step->tokens, batch->tokens, n_tokens * sizeof(int32_t));
    memcpy(step->positions, batch->positions, n_tokens * sizeof(int32_t));
    memcpy(step->cu_seqlens, batch->cu_seqlens, (n_seqs + 1) * sizeof(int32_t));
    for (int32_t i = 0; i < batch->n_seqs; i++) {
        step->kv_lens[i] = (int32_t)msa_cache_length(f->cache, batch->seqs[i]);
        int32_t n_new = batch->cu_seqlens[i + 1] - batch->cu_seqlens[i];
        int32_t newest = msa__forward_state_slot(f, batch->seqs[i]);
        step->state_in[i] = step->kv_lens[i] > n_new ? newest : -1;
        step->state_out[i] = newest ^ 1;
        for (int32_t n = wanted_rows(batch, i); n > 0; n--) *row++ = batch->cu_seqlens[i + 1] - n;
    }
}

/* Bring rows of the page table up to date whose sequence or pages are not those of the last batch.
 */
static msa_status upload_page_table(const msa__forward *f, const msa__batch *batch)
{
    int64_t stride = f->args.max_pages;
    for (int32_t i = 0; i < batch->n_seqs; i++) {
        int64_t version = msa_cache_page_version(f->cache, batch->seqs[i]);
        if (f->row_versions[i] == version) continue;
        int32_t *row = f->host_page_table + i * stride, kv_len;
        msa_kv_view view;
        MSA_TRY(msa_cache_view(f->cache, 0, &batch->seqs[i], 1, row, stride, &kv_len, &view));
        int64_t n_pages = msa__ceil_div(kv_len, f->model->config.block_size);
        f->row_versions[i] = -1; /* unknown until it has worked */
        MSA_TRY(msa_memory_upload_async(f->ctx, f->page_table + i * stride, row,
                                        (size_t)n_pages * sizeof(*row)));
        f->row_versions[i] = version;
    }
    return MSA_OK;
}

/* The arrays themselves are uploaded by msa__pass_layers, so that a recording does it too. */
static msa_status prepare_step(msa__pass *p)
{
    msa__forward *f = p->forward;
    msa__step host;
    p->step_bytes = msa__step_lay_out(f->host_step, p->n_tokens, p->n_seqs, p->n_rows, &host);
    (void)msa__step_lay_out(f->step, p->n_tokens, p->n_seqs, p->n_rows, &p->step);
    fill_step(f, p->batch, &host);
    return upload_page_table(f, p->batch);
}

msa_status msa__forward_derive(msa__forward *f, int32_t seq)
{
    const int32_t cu_seqlens[2] = {0, (int32_t)msa_cache_length(f->cache, seq)};
    const int32_t none = 0;
    const msa__logits_request request = {NULL, NULL};
    const msa__batch batch = {0, 1, &none, &none, cu_seqlens, &seq, &request};
    msa__pass p = {.forward = f, .config = &f->model->config, .batch = &batch, .n_seqs = 1};
    MSA_TRY(prepare_step(&p));
    MSA_TRY(msa_memory_upload_async(f->ctx, f->step, f->host_step, p.step_bytes));
    MSA_TRY(msa__pass_derive_all(&p, cu_seqlens[1]));
    return msa_context_synchronize(f->ctx);
}

msa_status msa__forward_copy_state(msa__forward *f, int32_t from, int32_t to)
{
    if (!f->states.data) return MSA_OK;
    size_t state = (size_t)f->states.stride[0];
    float *states = f->states.data;
    return msa_memory_copy(f->ctx, states + (size_t)msa__forward_state_slot(f, to) * state,
                           states + (size_t)msa__forward_state_slot(f, from) * state,
                           state * sizeof(float));
}

/* ---- logits ------------------------------------------------------------------------------- */

/* Hand out the wanted rows first..end-1, which lie in f->logits. */
static msa_status download_rows(const msa__pass *p, int64_t first, int64_t end)
{
    const msa__forward *f = p->forward;
    size_t vocab = (size_t)p->config->vocab_size;
    int64_t row = 0; /* first wanted row of the sequence */
    for (int32_t i = 0; i < p->n_seqs; i++) {
        const msa__logits_request *request = &p->batch->requests[i];
        int64_t next = row + wanted_rows(p->batch, i);
        int64_t from = row > first ? row : first, to = next < end ? next : end;
        if (from < to) {
            const float *source = f->logits + (size_t)(from - first) * vocab;
            size_t bytes = (size_t)(to - from) * vocab * sizeof(float);
            if (request->all) {
                MSA_TRY(msa_memory_download(f->ctx, request->all + (size_t)(from - row) * vocab,
                                            source, bytes));
            } else {
                MSA_TRY(msa_memory_download_async(f->ctx, request->last, source, bytes));
            }
        }
        row = next;
    }
    return MSA_OK;
}

static msa_status hand_out_logits(const msa__pass *p)
{
    int64_t piece = p->forward->max_rows;
    if (p->n_rows <= piece) return download_rows(p, 0, p->n_rows); /* msa__pass_run made them */
    for (int64_t first = 0; first < p->n_rows; first += piece) {
        int64_t end = first + piece < p->n_rows ? first + piece : p->n_rows;
        MSA_TRY(msa__pass_head(p, first, end - first));
        MSA_TRY(download_rows(p, first, end));
    }
    return MSA_OK;
}

/* Sequences that got every row have their last one among them. */
static void copy_last_rows(const msa__batch *batch, size_t vocab)
{
    for (int32_t i = 0; i < batch->n_seqs; i++) {
        const msa__logits_request *request = &batch->requests[i];
        if (!request->all || !request->last) continue;
        size_t n_rows = (size_t)wanted_rows(batch, i);
        memcpy(request->last, request->all + (n_rows - 1) * vocab, vocab * sizeof(float));
    }
}

/* ---- the pass ----------------------------------------------------------------------------- */

static msa_status run(msa__pass *p)
{
    MSA_TRY(prepare_step(p));
    MSA_TRY(msa__pass_run(p));
    return hand_out_logits(p);
}

msa_status msa__forward_run(msa__forward *forward, const msa__batch *batch, const msa_taps *taps)
{
    msa__pass p = {.forward = forward,
                   .config = &forward->model->config,
                   .batch = batch,
                   .taps = taps,
                   .n_tokens = batch->n_tokens,
                   .n_seqs = batch->n_seqs};
    for (int32_t i = 0; i < batch->n_seqs; i++) p.n_rows += wanted_rows(batch, i);
    msa_status status = run(&p);
    /* Also after a failure: what was uploaded last may still be read. */
    msa_status finished = msa_context_synchronize(forward->ctx);
    if (status == MSA_OK) status = finished;
    MSA_TRY(status);
    copy_last_rows(batch, (size_t)p.config->vocab_size);
    for (int32_t i = 0; i < batch->n_seqs; i++) forward->newest[batch->seqs[i]] ^= 1;
    return MSA_OK;
}
