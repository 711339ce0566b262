/* Linear attention with decay in chunks, (L22): an item is one head of one sequence. */
#include "backend/cpu/cpu_lightning.h"

#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/cpu_scratch.h"

#include <math.h>
#include <string.h>

/* ---- chunks ---------------------------------------------------------------------------------- */

void msa__load_rows(const msa__cpu_kernels *kernels, const msa_tensor *t, int64_t first, int64_t n,
                    int64_t head, int32_t silu, float *rows)
{
    int64_t dim = t->shape[2];
    for (int64_t i = 0; i < n; i++) {
        int64_t offset = (first + i) * t->stride[0] + head * t->stride[1];
        float *row = rows + i * dim;
        kernels->to_f32(
            row, (const unsigned char *)t->data + offset * (int64_t)msa_dtype_bytes(t->dtype),
            t->dtype, dim);
        for (int64_t d = 0; silu && d < dim; d++) row[d] = row[d] / (1 + expf(-row[d]));
    }
}

void msa__decays(float slope, float *decays)
{
    for (int32_t i = 0; i <= MSA__CHUNK_ROWS; i++) decays[i] = expf(-slope * (float)i);
}

void msa__decay_lower(float *p, int64_t n, const float *decays)
{
    for (int64_t i = 0; i < n; i++) {
        float *row = p + i * MSA__CHUNK_ROWS;
        for (int64_t j = 0; j <= i; j++) row[j] *= decays[i - j];
        for (int64_t j = i + 1; j < n; j++) row[j] = 0;
    }
}

void msa__scale_and_transpose(const float *rows, int64_t n, int64_t dim, const float *factors,
                              int64_t step, float *transposed)
{
    for (int64_t j = 0; j < n; j++) {
        float factor = factors[j * step];
        for (int64_t d = 0; d < dim; d++) {
            transposed[d * MSA__CHUNK_ROWS + j] = factor * rows[j * dim + d];
        }
    }
}

/* ---- forward --------------------------------------------------------------------------------- */

typedef struct {
    float *state;     /* [D][D] */
    float *q, *k, *v; /* [chunk][D] */
    float *k_turned;  /* [D][chunk] */
    float *p;         /* [chunk][chunk] */
    float *out;       /* [chunk][D] */
    float *panels;
} head_scratch;

typedef struct {
    const msa__cpu_kernels *kernels;
    const msa_lightning_args *args;
    unsigned char *scratch;
    size_t scratch_bytes;
} lightning_job;

static void take_scratch(int64_t dim, msa__arena *arena, head_scratch *s)
{
    s->state = msa__take(arena, dim * dim, sizeof(float));
    s->q = msa__take(arena, MSA__CHUNK_ROWS * dim, sizeof(float));
    s->k = msa__take(arena, MSA__CHUNK_ROWS * dim, sizeof(float));
    s->v = msa__take(arena, MSA__CHUNK_ROWS * dim, sizeof(float));
    s->k_turned = msa__take(arena, MSA__CHUNK_ROWS * dim, sizeof(float));
    s->p = msa__take(arena, MSA__CHUNK_ROWS * MSA__CHUNK_ROWS, sizeof(float));
    s->out = msa__take(arena, MSA__CHUNK_ROWS * dim, sizeof(float));
    s->panels = msa__take(arena, msa__panel_floats(dim), sizeof(float));
}

static size_t lay_out(lightning_job *job, const msa_context *ctx, const msa_lightning_args *args,
                      void *workspace)
{
    head_scratch scratch;
    msa__arena arena = {workspace, 0}, one_thread = {NULL, 0};
    take_scratch(args->q.shape[2], &one_thread, &scratch);
    job->kernels = ctx->cpu_kernels;
    job->args = args;
    job->scratch_bytes = one_thread.used;
    job->scratch = msa__take(&arena, msa__pool_threads(ctx->pool), job->scratch_bytes);
    return arena.used;
}

size_t msa__cpu_lightning_workspace(const msa_context *ctx, const msa_lightning_args *args)
{
    lightning_job job;
    return lay_out(&job, ctx, args, NULL);
}

static void load_state(const msa_lightning_args *args, int32_t slot, int64_t head, float *state)
{
    const msa_tensor *t = &args->states;
    int64_t dim = args->q.shape[2];
    for (int64_t a = 0; a < dim; a++) {
        if (slot < 0) {
            memset(state + a * dim, 0, (size_t)dim * sizeof(float));
        } else {
            memcpy(state + a * dim,
                   (const float *)t->data + slot * t->stride[0] + head * t->stride[1] +
                       a * t->stride[2],
                   (size_t)dim * sizeof(float));
        }
    }
}

static void store_state(const msa_lightning_args *args, int32_t slot, int64_t head,
                        const float *state)
{
    const msa_tensor *t = &args->states;
    int64_t dim = args->q.shape[2];
    for (int64_t a = 0; a < dim && slot >= 0; a++) {
        memcpy((float *)t->data + slot * t->stride[0] + head * t->stride[1] + a * t->stride[2],
               state + a * dim, (size_t)dim * sizeof(float));
    }
}

/* (L22) for n rows: what the state gives, what the chunk's own keys give, the state after it. */
static void run_chunk(const lightning_job *job, const head_scratch *s, int64_t first, int64_t n,
                      int64_t head, const float *decays)
{
    const msa__cpu_kernels *kernels = job->kernels;
    const msa_lightning_args *args = job->args;
    int64_t dim = args->q.shape[2];
    msa__load_rows(kernels, &args->q, first, n, head, 1, s->q);
    msa__load_rows(kernels, &args->k, first, n, head, 1, s->k);
    msa__load_rows(kernels, &args->v, first, n, head, 1, s->v);

    msa__times(kernels, s->panels, n, dim, dim, s->q, dim, s->state, s->out, dim, 0);
    for (int64_t i = 0; i < n; i++) {
        for (int64_t d = 0; d < dim; d++) s->out[i * dim + d] *= decays[i + 1];
    }
    msa__times_transposed(kernels, s->panels, n, dim, n, s->q, dim, s->k, s->p, MSA__CHUNK_ROWS, 0);
    msa__decay_lower(s->p, n, decays);
    msa__times(kernels, s->panels, n, n, dim, s->p, MSA__CHUNK_ROWS, s->v, s->out, dim, 1);

    msa__scale_and_transpose(s->k, n, dim, decays + n - 1, -1, s->k_turned);
    for (int64_t a = 0; a < dim * dim; a++) s->state[a] *= decays[n];
    msa__times(kernels, s->panels, dim, n, dim, s->k_turned, MSA__CHUNK_ROWS, s->v, s->state, dim,
               1);
    for (int64_t i = 0; i < n; i++) {
        int64_t offset = (first + i) * args->out.stride[0] + head * args->out.stride[1];
        kernels->from_f32((unsigned char *)args->out.data +
                              offset * (int64_t)msa_dtype_bytes(args->out.dtype),
                          args->out.dtype, s->out + i * dim, dim);
    }
}

static void run_item(void *arg, int64_t item, int32_t thread)
{
    const lightning_job *job = arg;
    const msa_lightning_args *args = job->args;
    int64_t n_heads = args->q.shape[1], head = item % n_heads, seq = item / n_heads;
    msa__arena arena = {job->scratch + (size_t)thread * job->scratch_bytes, 0};
    float decays[MSA__CHUNK_ROWS + 1];
    head_scratch s;
    take_scratch(args->q.shape[2], &arena, &s);
    msa__decays(args->slopes[head], decays);
    load_state(args, args->state_in ? args->state_in[seq] : -1, head, s.state);
    int64_t end = args->cu_seqlens_q[seq + 1];
    for (int64_t first = args->cu_seqlens_q[seq]; first < end; first += MSA__CHUNK_ROWS) {
        int64_t n = end - first < MSA__CHUNK_ROWS ? end - first : MSA__CHUNK_ROWS;
        run_chunk(job, &s, first, n, head, decays);
    }
    store_state(args, args->state_out ? args->state_out[seq] : -1, head, s.state);
}

msa_status msa__cpu_lightning(msa_context *ctx, const msa_lightning_args *args, void *workspace)
{
    lightning_job job;
    lay_out(&job, ctx, args, workspace);
    msa__parallel_for(ctx->pool, (int64_t)args->n_seqs * args->q.shape[1], run_item, &job);
    return MSA_OK;
}
