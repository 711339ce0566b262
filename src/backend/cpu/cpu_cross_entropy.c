/* Cross-entropy (G8): a row is read for its largest logit, for the sum of exponentials, and for the
 * gradient; the sum is cut into fixed chunks. */
#include "backend/cpu/cpu_rows.h"

#include <math.h>

static float largest_logit(const msa_tensor *logits, const msa__cpu_kernels *kernels, int64_t row)
{
    float buffer[MSA__CHUNK], largest[16];
    for (int j = 0; j < 16; j++) largest[j] = -INFINITY;
    for (int64_t i = 0; i < logits->shape[1]; i += MSA__CHUNK) {
        int64_t n = chunk_length(logits->shape[1] - i), l = 0;
        const float *x = load_chunk(kernels, logits, row + i, n, buffer);
        for (; l + 16 <= n; l += 16) {
            for (int j = 0; j < 16; j++) largest[j] = x[l + j] > largest[j] ? x[l + j] : largest[j];
        }
        for (; l < n; l++) largest[0] = x[l] > largest[0] ? x[l] : largest[0];
    }
    for (int j = 1; j < 16; j++) largest[0] = largest[j] > largest[0] ? largest[j] : largest[0];
    return largest[0];
}

static double exponential_sum(const msa_tensor *logits, const msa__cpu_kernels *kernels,
                              int64_t row, float largest)
{
    float buffer[MSA__CHUNK], y[MSA__CHUNK];
    double total = 0;
    for (int64_t i = 0; i < logits->shape[1]; i += MSA__CHUNK) {
        int64_t n = chunk_length(logits->shape[1] - i), l = 0;
        float sums[16] = {0};
        kernels->exp_below(y, load_chunk(kernels, logits, row + i, n, buffer), largest, n);
        for (; l + 16 <= n; l += 16) {
            for (int j = 0; j < 16; j++) sums[j] += y[l + j];
        }
        for (int j = 0; l < n; l++, j++) sums[j] += y[l];
        for (int j = 0; j < 16; j++) total += (double)sums[j];
    }
    return total;
}

/* weight * (softmax - one-hot) */
static void write_gradient(const msa_cross_entropy_args *args, const msa__cpu_kernels *kernels,
                           int64_t token, float largest, double sum)
{
    const msa_tensor *logits = &args->logits, *d_logits = &args->d_logits;
    float buffer[MSA__CHUNK], y[MSA__CHUNK], factor = (float)((double)args->weight / sum);
    int64_t target = args->targets[token];
    for (int64_t i = 0; i < logits->shape[1]; i += MSA__CHUNK) {
        int64_t n = chunk_length(logits->shape[1] - i);
        const float *x = load_chunk(kernels, logits, token * logits->stride[0] + i, n, buffer);
        kernels->exp_below(y, x, largest, n);
        for (int64_t j = 0; j < n; j++) y[j] *= factor;
        if (target >= i && target < i + n) y[target - i] -= args->weight;
        kernels->from_f32(element_at(d_logits, token * d_logits->stride[0] + i), d_logits->dtype, y,
                          n);
    }
}

static void cross_entropy_rows(const void *op_args, const msa__cpu_kernels *kernels, int64_t first,
                               int64_t last)
{
    const msa_cross_entropy_args *args = op_args;
    const msa_tensor *logits = &args->logits, *d_logits = &args->d_logits;
    float *loss = args->loss.data;
    for (int64_t t = first; t < last; t++) {
        if (args->targets[t] < 0) {
            if (loss) loss[t] = 0;
            if (!d_logits->data) continue;
            memset(element_at(d_logits, t * d_logits->stride[0]), 0,
                   (size_t)d_logits->shape[1] * msa_dtype_bytes(d_logits->dtype));
            continue;
        }
        int64_t row = t * logits->stride[0];
        float largest = largest_logit(logits, kernels, row), target;
        double sum = exponential_sum(logits, kernels, row, largest);
        kernels->to_f32(&target, element_at(logits, row + args->targets[t]), logits->dtype, 1);
        if (loss) loss[t] = (float)(log(sum) + ((double)largest - (double)target));
        if (d_logits->data) write_gradient(args, kernels, t, largest, sum);
    }
}

msa_status msa__cpu_cross_entropy(msa_context *ctx, const msa_cross_entropy_args *args)
{
    msa__cpu_for_rows(ctx, args->logits.shape[0], args->logits.shape[1], cross_entropy_rows, args);
    return MSA_OK;
}
