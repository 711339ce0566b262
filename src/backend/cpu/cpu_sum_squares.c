/* Sum of squares: pieces of one length, summed in double, then added in order. */
#include "backend/cpu/cpu_backend.h"
#include "base/arena.h"

enum { PIECE = 16384 };

typedef struct squares_job {
    const msa_sum_squares_args *args;
    double *sums; /* [pieces] */
} squares_job;

size_t msa__cpu_sum_squares_workspace(const msa_context *ctx, const msa_sum_squares_args *args)
{
    (void)ctx;
    return (size_t)msa__ceil_div(args->n, PIECE) * sizeof(double);
}

static void sum_piece(void *arg, int64_t piece, int32_t thread)
{
    (void)thread;
    const squares_job *job = arg;
    const float *x = job->args->x + piece * PIECE;
    int64_t left = job->args->n - piece * PIECE, n = left < PIECE ? left : PIECE, i = 0;
    double sums[8] = {0}, total = 0;
    for (; i + 8 <= n; i += 8) {
        for (int j = 0; j < 8; j++) sums[j] += (double)x[i + j] * (double)x[i + j];
    }
    for (int j = 0; i < n; i++, j++) sums[j] += (double)x[i] * (double)x[i];
    for (int j = 0; j < 8; j++) total += sums[j];
    job->sums[piece] = total;
}

msa_status msa__cpu_sum_squares(msa_context *ctx, const msa_sum_squares_args *args, void *workspace)
{
    squares_job job = {args, workspace};
    int64_t n_pieces = msa__ceil_div(args->n, PIECE);
    double sum = 0;
    msa__parallel_for(ctx->pool, n_pieces, sum_piece, &job);
    for (int64_t piece = 0; piece < n_pieces; piece++) sum += job.sums[piece];
    *args->out = sum;
    return MSA_OK;
}
