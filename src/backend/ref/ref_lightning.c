/* Linear attention with decay as a recurrence, one token after the other, (L20), (L21). */
#include "backend/ref/ref_backend.h"
#include "backend/ref/ref_rows.h"

#include <math.h>

/* A state in double. */
size_t msa__ref_lightning_workspace(const msa_context *ctx, const msa_lightning_args *args)
{
    (void)ctx;
    return (size_t)(args->q.shape[2] * args->q.shape[2]) * sizeof(double);
}

static double silu(double x)
{
    return x / (1 + exp(-x));
}

static float *state_row(const msa_tensor *states, int32_t slot, int64_t head, int64_t row)
{
    return (float *)states->data + slot * states->stride[0] + head * states->stride[1] +
           row * states->stride[2];
}

static void run_token(const msa_lightning_args *args, int64_t i, int64_t head, double *state)
{
    ref_row q = ref_tensor_row(&args->q, i, head), k = ref_tensor_row(&args->k, i, head);
    ref_row v = ref_tensor_row(&args->v, i, head);
    int64_t dim = args->q.shape[2];
    int64_t first = i * args->out.stride[0] + head * args->out.stride[1];
    double decay = exp(-(double)args->slopes[head]);
    for (int64_t a = 0; a < dim; a++) {
        double key = silu(ref_at(k, a));
        for (int64_t b = 0; b < dim; b++) {
            state[a * dim + b] = decay * state[a * dim + b] + key * silu(ref_at(v, b)); /* (L20) */
        }
    }
    for (int64_t b = 0; b < dim; b++) {
        double sum = 0;
        for (int64_t a = 0; a < dim; a++)
            sum += silu(ref_at(q, a)) * state[a * dim + b]; /* (L21) */
        store_f32(args->out.data, args->out.dtype, first + b, (float)sum);
    }
}

static void run_head(const msa_lightning_args *args, int32_t seq, int64_t head, double *state)
{
    int64_t dim = args->q.shape[2];
    int32_t from = args->state_in ? args->state_in[seq] : -1;
    int32_t to = args->state_out ? args->state_out[seq] : -1;
    for (int64_t a = 0; a < dim * dim; a++) {
        state[a] = from < 0 ? 0 : (double)state_row(&args->states, from, head, a / dim)[a % dim];
    }
    for (int64_t i = args->cu_seqlens_q[seq]; i < args->cu_seqlens_q[seq + 1]; i++) {
        run_token(args, i, head, state);
    }
    for (int64_t a = 0; a < dim * dim && to >= 0; a++) {
        state_row(&args->states, to, head, a / dim)[a % dim] = (float)state[a];
    }
}

msa_status msa__ref_lightning(msa_context *ctx, const msa_lightning_args *args, void *workspace)
{
    (void)ctx;
    for (int32_t s = 0; s < args->n_seqs; s++) {
        for (int64_t h = 0; h < args->q.shape[1]; h++) run_head(args, s, h, workspace);
    }
    return MSA_OK;
}
