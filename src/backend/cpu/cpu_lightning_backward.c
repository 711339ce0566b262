/* Gradient of linear attention with decay in chunks, (L24): an item is one head of one sequence.
 *
 * One walk forward with the state S gives dq, one walk back with the state R of what comes later
 * gives dk and dv. Within a chunk the same triangles serve both: d_out v^T and q k^T, with decay.
 */
#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/cpu_lightning.h"
#include "backend/cpu/cpu_scratch.h"

#include <math.h>
#include <string.h>

typedef struct {
    float *state;         /* [D][D] */
    float *q, *k, *v, *d; /* [chunk][D], q, k and v through SiLU; d_out */
    float *turned;        /* [D][chunk] */
    float *p, *p_turned;  /* [chunk][chunk] */
    float *result, *raw;  /* [chunk][D] */
    float *panels;
} head_scratch;

typedef struct {
    const msa__cpu_kernels *kernels;
    const msa_lightning_backward_args *args;
    unsigned char *scratch;
    size_t scratch_bytes;
} backward_job;

static void take_scratch(int64_t dim, msa__arena *arena, head_scratch *s)
{
    float **chunks[] = {&s->q, &s->k, &s->v, &s->d, &s->turned, &s->result, &s->raw};
    s->state = msa__take(arena, dim * dim, sizeof(float));
    for (int i = 0; i < 7; i++) *chunks[i] = msa__take(arena, MSA__CHUNK_ROWS * dim, sizeof(float));
    s->p = msa__take(arena, MSA__CHUNK_ROWS * MSA__CHUNK_ROWS, sizeof(float));
    s->p_turned = msa__take(arena, MSA__CHUNK_ROWS * MSA__CHUNK_ROWS, sizeof(float));
    s->panels = msa__take(arena, msa__panel_floats(dim), sizeof(float));
}

static size_t lay_out(backward_job *job, const msa_context *ctx,
                      const msa_lightning_backward_args *args, void *workspace)
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

size_t msa__cpu_lightning_backward_workspace(const msa_context *ctx,
                                             const msa_lightning_backward_args *args)
{
    backward_job job;
    return lay_out(&job, ctx, args, NULL);
}

static void load_chunk_rows(const backward_job *job, const head_scratch *s, int64_t first,
                            int64_t n, int64_t head)
{
    const msa_lightning_backward_args *args = job->args;
    msa__load_rows(job->kernels, &args->q, first, n, head, 1, s->q);
    msa__load_rows(job->kernels, &args->k, first, n, head, 1, s->k);
    msa__load_rows(job->kernels, &args->v, first, n, head, 1, s->v);
    msa__load_rows(job->kernels, &args->d_out, first, n, head, 0, s->d);
}

/* result times the slope of SiLU at the projection t. */
static void write_rows(const backward_job *job, const head_scratch *s, const msa_tensor *t,
                       const msa_tensor *out, int64_t first, int64_t n, int64_t head)
{
    int64_t dim = t->shape[2];
    msa__load_rows(job->kernels, t, first, n, head, 0, s->raw);
    for (int64_t e = 0; e < n * dim; e++) {
        float x = s->raw[e], sigmoid = 1 / (1 + expf(-x));
        s->result[e] *= sigmoid * (1 + x * (1 - sigmoid));
    }
    for (int64_t i = 0; i < n; i++) {
        int64_t offset = (first + i) * out->stride[0] + head * out->stride[1];
        job->kernels->from_f32((unsigned char *)out->data +
                                   offset * (int64_t)msa_dtype_bytes(out->dtype),
                               out->dtype, s->result + i * dim, dim);
    }
}

/* p[i][j] = decays[i - j] <a_i, b_j> for j <= i, and its transpose. */
static void triangle(const backward_job *job, const head_scratch *s, int64_t n, const float *a,
                     const float *b, const float *decays)
{
    int64_t dim = job->args->q.shape[2];
    msa__times_transposed(job->kernels, s->panels, n, dim, n, a, dim, b, s->p, MSA__CHUNK_ROWS, 0);
    msa__decay_lower(s->p, n, decays);
    for (int64_t i = 0; i < n; i++) {
        for (int64_t j = 0; j < n; j++) {
            s->p_turned[j * MSA__CHUNK_ROWS + i] = s->p[i * MSA__CHUNK_ROWS + j];
        }
    }
}

static void scale_result(const head_scratch *s, int64_t n, int64_t dim, const float *factors,
                         int64_t step)
{
    for (int64_t i = 0; i < n; i++) {
        for (int64_t d = 0; d < dim; d++) s->result[i * dim + d] *= factors[i * step];
    }
}

/* state = decays[n] state + (rows of a, each with its factor)^T b */
static void advance_state(const backward_job *job, const head_scratch *s, int64_t n, const float *a,
                          const float *b, const float *decays, const float *factors, int64_t step)
{
    int64_t dim = job->args->q.shape[2];
    msa__scale_and_transpose(a, n, dim, factors, step, s->turned);
    for (int64_t e = 0; e < dim * dim; e++) s->state[e] *= decays[n];
    msa__times(job->kernels, s->panels, dim, n, dim, s->turned, MSA__CHUNK_ROWS, b, s->state, dim,
               1);
}

/* dq_i = d_i S_i^T: the state before the chunk, then the chunk's keys. */
static void queries_of_chunk(const backward_job *job, const head_scratch *s, int64_t first,
                             int64_t n, int64_t head, const float *decays)
{
    const msa__cpu_kernels *kernels = job->kernels;
    int64_t dim = job->args->q.shape[2];
    load_chunk_rows(job, s, first, n, head);
    for (int64_t a = 0; a < dim; a += MSA__CHUNK_ROWS) { /* columns of the result */
        int64_t columns = dim - a < MSA__CHUNK_ROWS ? dim - a : MSA__CHUNK_ROWS;
        msa__times_transposed(kernels, s->panels, n, dim, columns, s->d, dim, s->state + a * dim,
                              s->result + a, dim, 0);
    }
    scale_result(s, n, dim, decays + 1, 1);
    triangle(job, s, n, s->d, s->v, decays);
    msa__times(kernels, s->panels, n, n, dim, s->p, MSA__CHUNK_ROWS, s->k, s->result, dim, 1);
    write_rows(job, s, &job->args->q, &job->args->dq, first, n, head);
    advance_state(job, s, n, s->k, s->v, decays, decays + n - 1, -1);
}

/* With R of the tokens after the chunk: dk_j = v_j R_j^T, dv_j = k_j R_j. */
static void keys_of_chunk(const backward_job *job, const head_scratch *s, int64_t first, int64_t n,
                          int64_t head, const float *decays)
{
    const msa__cpu_kernels *kernels = job->kernels;
    int64_t dim = job->args->q.shape[2];
    load_chunk_rows(job, s, first, n, head);
    for (int64_t a = 0; a < dim; a += MSA__CHUNK_ROWS) {
        int64_t columns = dim - a < MSA__CHUNK_ROWS ? dim - a : MSA__CHUNK_ROWS;
        msa__times_transposed(kernels, s->panels, n, dim, columns, s->v, dim, s->state + a * dim,
                              s->result + a, dim, 0);
    }
    scale_result(s, n, dim, decays + n, -1);
    triangle(job, s, n, s->d, s->v, decays);
    msa__times(kernels, s->panels, n, n, dim, s->p_turned, MSA__CHUNK_ROWS, s->q, s->result, dim,
               1);
    write_rows(job, s, &job->args->k, &job->args->dk, first, n, head);

    msa__times(kernels, s->panels, n, dim, dim, s->k, dim, s->state, s->result, dim, 0);
    scale_result(s, n, dim, decays + n, -1);
    triangle(job, s, n, s->q, s->k, decays);
    msa__times(kernels, s->panels, n, n, dim, s->p_turned, MSA__CHUNK_ROWS, s->d, s->result, dim,
               1);
    write_rows(job, s, &job->args->v, &job->args->dv, first, n, head);
    advance_state(job, s, n, s->q, s->d, decays, decays, 1);
}

static void run_item(void *arg, int64_t item, int32_t thread)
{
    const backward_job *job = arg;
    const msa_lightning_backward_args *args = job->args;
    int64_t n_heads = args->q.shape[1], head = item % n_heads, seq = item / n_heads;
    int64_t begin = args->cu_seqlens_q[seq], end = args->cu_seqlens_q[seq + 1];
    size_t state_bytes = (size_t)(args->q.shape[2] * args->q.shape[2]) * sizeof(float);
    msa__arena arena = {job->scratch + (size_t)thread * job->scratch_bytes, 0};
    float decays[MSA__CHUNK_ROWS + 1];
    head_scratch s;
    take_scratch(args->q.shape[2], &arena, &s);
    msa__decays(args->slopes[head], decays);
    memset(s.state, 0, state_bytes);
    for (int64_t first = begin; first < end; first += MSA__CHUNK_ROWS) {
        int64_t n = end - first < MSA__CHUNK_ROWS ? end - first : MSA__CHUNK_ROWS;
        queries_of_chunk(job, &s, first, n, head, decays);
    }
    memset(s.state, 0, state_bytes);
    for (int64_t last = end; last > begin; last -= MSA__CHUNK_ROWS) {
        int64_t n = last - begin < MSA__CHUNK_ROWS ? last - begin : MSA__CHUNK_ROWS;
        keys_of_chunk(job, &s, last - n, n, head, decays);
    }
}

msa_status msa__cpu_lightning_backward(msa_context *ctx, const msa_lightning_backward_args *args,
                                       void *workspace)
{
    backward_job job;
    lay_out(&job, ctx, args, workspace);
    msa__parallel_for(ctx->pool, (int64_t)args->n_seqs * args->q.shape[1], run_item, &job);
    return MSA_OK;
}
