/* Gradient of linear attention with decay as the double sum it is, (L24), in double. */
#include "backend/ref/ref_backend.h"
#include "backend/ref/ref_rows.h"

#include <math.h>

/* Gradients of one row's activations of q, k and v. */
size_t msa__ref_lightning_backward_workspace(const msa_context *ctx,
                                             const msa_lightning_backward_args *args)
{
    (void)ctx;
    return (size_t)(3 * args->q.shape[2]) * sizeof(double);
}

static double silu(double x)
{
    return x / (1 + exp(-x));
}

static double silu_slope(double x)
{
    double sigmoid = 1 / (1 + exp(-x));
    return sigmoid * (1 + x * (1 - sigmoid));
}

static double product(const msa_tensor *a, int64_t i, int a_silu, const msa_tensor *b, int64_t j,
                      int b_silu, int64_t head)
{
    ref_row x = ref_tensor_row(a, i, head), y = ref_tensor_row(b, j, head);
    double sum = 0;
    for (int64_t d = 0; d < a->shape[2]; d++) {
        double u = ref_at(x, d), v = ref_at(y, d);
        sum += (a_silu ? silu(u) : u) * (b_silu ? silu(v) : v);
    }
    return sum;
}

/* d [D] += factor times row j, through SiLU where it says so. */
static void add_row(double *d, double factor, const msa_tensor *t, int64_t j, int through_silu,
                    int64_t head)
{
    ref_row row = ref_tensor_row(t, j, head);
    for (int64_t a = 0; a < t->shape[2]; a++) {
        double x = ref_at(row, a);
        d[a] += factor * (through_silu ? silu(x) : x);
    }
}

/* Through the SiLU of row i of a projection. */
static void write_row(const msa_tensor *out, const msa_tensor *t, int64_t i, int64_t head,
                      const double *d)
{
    ref_row row = ref_tensor_row(t, i, head);
    int64_t first = i * out->stride[0] + head * out->stride[1];
    for (int64_t a = 0; a < t->shape[2]; a++) {
        store_f32(out->data, out->dtype, first + a, (float)(d[a] * silu_slope(ref_at(row, a))));
    }
}

static void run_query(const msa_lightning_backward_args *args, int64_t begin, int64_t i,
                      int64_t head, double *dq)
{
    double slope = (double)args->slopes[head];
    for (int64_t a = 0; a < args->q.shape[2]; a++) dq[a] = 0;
    for (int64_t j = begin; j <= i; j++) {
        double weight = exp(-slope * (double)(i - j));
        add_row(dq, weight * product(&args->d_out, i, 0, &args->v, j, 1, head), &args->k, j, 1,
                head);
    }
}

static void run_key(const msa_lightning_backward_args *args, int64_t j, int64_t end, int64_t head,
                    double *dk, double *dv)
{
    double slope = (double)args->slopes[head];
    for (int64_t a = 0; a < args->q.shape[2]; a++) dk[a] = dv[a] = 0;
    for (int64_t i = j; i < end; i++) {
        double weight = exp(-slope * (double)(i - j));
        add_row(dk, weight * product(&args->d_out, i, 0, &args->v, j, 1, head), &args->q, i, 1,
                head);
        add_row(dv, weight * product(&args->q, i, 1, &args->k, j, 1, head), &args->d_out, i, 0,
                head);
    }
}

static void run_sequence(const msa_lightning_backward_args *args, int64_t begin, int64_t end,
                         int64_t head, double *d)
{
    int64_t dim = args->q.shape[2];
    for (int64_t i = begin; i < end; i++) {
        run_query(args, begin, i, head, d);
        write_row(&args->dq, &args->q, i, head, d);
        run_key(args, i, end, head, d + dim, d + 2 * dim);
        write_row(&args->dk, &args->k, i, head, d + dim);
        write_row(&args->dv, &args->v, i, head, d + 2 * dim);
    }
}

msa_status msa__ref_lightning_backward(msa_context *ctx, const msa_lightning_backward_args *args,
                                       void *workspace)
{
    (void)ctx;
    const int32_t *cu = args->cu_seqlens_q;
    for (int32_t s = 0; s < args->n_seqs; s++) {
        for (int64_t h = 0; h < args->q.shape[1]; h++) {
            run_sequence(args, cu[s], cu[s + 1], h, workspace);
        }
    }
    return MSA_OK;
}
