/* The first two jobs of a wave of the experts' gradient: columns gathered, then hidden rows and the
 * gradients of gate, up and routing weights; see cpu_moe_backward.c. */
#include "backend/cpu/cpu_moe_backward.h"

/* Item: a block of the inputs of one segment. */
void msa__moe_gather_item(void *arg, int64_t item, int32_t thread)
{
    const msa__moe_gradient *job = arg;
    const msa_tensor *x = &job->args->x, *d_out = &job->args->d_out;
    int64_t blocks = msa__ceil_div(job->n_in, MSA__BLOCK), first = item % blocks * MSA__BLOCK;
    const msa__moe_segment *segment = &job->wave.segments[item / blocks];
    int64_t n = block_width(job->n_in, first), ld = whole_panels(job->n_in);
    float *weighted = tile_of(job, thread, 0);
    void *x_rows = inputs_at(job, job->x_rows, segment, first);
    void *d_rows = inputs_at(job, job->d_rows, segment, first);
    for (int64_t j = 0; j < segment->n_columns; j++) {
        int64_t token = job->first_token + job->route.token[segment->column + j];
        float weight = job->route.weight[segment->column + j], *row = weighted + j * MSA__BLOCK;
        msa__to_factor(job->kernels, job->is_bf16, msa__factor_at(x_rows, job->is_bf16, j * ld),
                       element(x, token, first), x->dtype, n);
        msa__to_factor(job->kernels, job->is_bf16, msa__factor_at(d_rows, job->is_bf16, j * ld),
                       element(d_out, token, first), d_out->dtype, n);
        job->kernels->to_f32(row, element(d_out, token, first), d_out->dtype, n);
        for (int64_t i = 0; i < n; i++) row[i] *= weight;
    }
    if (!gradients_of(job, segment)) return;
    msa__pack_tokens(job->kernels, job->is_bf16,
                     panels_from(job, inputs_at(job, job->x_panels, segment, 0), segment, first),
                     x_rows, job->is_bf16 ? MSA_DTYPE_BF16 : MSA_DTYPE_F32, ld, segment->n_columns,
                     n, scratch_of(job, thread));
    msa__transpose_tokens(job->kernels, job->is_bf16,
                          inputs_at(job, job->d_columns, segment, first * pitch_of(segment)),
                          pitch_of(segment), weighted, segment->n_columns, n);
}

static float dot(const float *a, const float *b, int64_t n)
{
    float sums[16] = {0}, total = 0;
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) {
        for (int j = 0; j < 16; j++) sums[j] += a[i + j] * b[i + j];
    }
    for (int j = 0; i < n; i++, j++) sums[j] += a[i] * b[i];
    for (int j = 0; j < 16; j++) total += sums[j];
    return total;
}

/* Gradients of gate and up in place of them; hidden rows, rounded to the dtype of x as the forward
 * pass rounds them; returns their product with d_hidden. */
static float differentiate_row(const msa__moe_gradient *job, float weight, float *gate, float *up,
                               float *d_hidden, float *hidden, int64_t n)
{
    const msa_activation *activation = &job->args->activation;
    float rounded[MSA__BLOCK];
    job->kernels->gated(hidden, gate, up, activation, n);
    job->kernels->from_f32(rounded, job->args->x.dtype, hidden, n);
    job->kernels->to_f32(hidden, rounded, job->args->x.dtype, n);
    float share = dot(hidden, d_hidden, n);
    for (int64_t i = 0; i < n; i++) d_hidden[i] *= weight;
    job->kernels->gated_backward(gate, up, gate, up, d_hidden, activation, n);
    return share;
}

int64_t msa__moe_hidden_items(const msa__moe_gradient *job, const msa__moe_segment *segment)
{
    return msa__ceil_div(hidden_of(job, segment), MSA__BLOCK);
}

/* What the weights' gradients take from a block of hidden columns. */
static void store_columns(const msa__moe_gradient *job, const msa__moe_segment *segment,
                          int64_t first, int64_t n, const float *gate, const float *up,
                          const float *hidden, int32_t thread)
{
    int64_t pitch = pitch_of(segment);
    msa__pack_tokens(
        job->kernels, job->is_bf16,
        panels_from(job, hidden_at(job, job->hidden_panels, segment, 0), segment, first), hidden,
        MSA_DTYPE_F32, MSA__BLOCK, segment->n_columns, n, scratch_of(job, thread));
    msa__transpose_tokens(job->kernels, job->is_bf16,
                          hidden_at(job, job->gate_columns, segment, first * pitch), pitch, gate,
                          segment->n_columns, n);
    msa__transpose_tokens(job->kernels, job->is_bf16,
                          hidden_at(job, job->up_columns, segment, first * pitch), pitch, up,
                          segment->n_columns, n);
}

/* Item: a block of hidden columns of one segment. */
void msa__moe_hidden_item(void *arg, int64_t item, int32_t thread)
{
    const msa__moe_gradient *job = arg;
    const msa__moe_segment *segment = job->wave.segments;
    for (; item >= msa__moe_hidden_items(job, segment); segment++)
        item -= msa__moe_hidden_items(job, segment);
    const msa_mlp_weights *mlp = mlp_of(job, segment);
    int64_t width = hidden_of(job, segment), first = item * MSA__BLOCK;
    int64_t n = block_width(width, first), ld = whole_panels(width);
    float *gate = tile_of(job, thread, 0), *up = tile_of(job, thread, 1);
    float *d_hidden = tile_of(job, thread, 2), *hidden = tile_of(job, thread, 3);
    void *gate_rows = hidden_at(job, job->gate_rows, segment, first);
    void *up_rows = hidden_at(job, job->up_rows, segment, first);
    msa__moe_multiply_rows(job, segment, inputs_at(job, job->x_rows, segment, 0), &mlp->gate, 1,
                           first, n, gate, 0, thread);
    msa__moe_multiply_rows(job, segment, inputs_at(job, job->x_rows, segment, 0), &mlp->up, 1,
                           first, n, up, 0, thread);
    msa__moe_multiply_rows(job, segment, inputs_at(job, job->d_rows, segment, 0), &mlp->down, 0,
                           first, n, d_hidden, 0, thread);
    for (int64_t j = 0; j < segment->n_columns; j++) {
        int64_t row = j * MSA__BLOCK;
        float weight = job->route.weight[segment->column + j];
        job->shares[(segment->panel * MSA__PANEL + j) * job->n_blocks + item] =
            differentiate_row(job, weight, gate + row, up + row, d_hidden + row, hidden + row, n);
        msa__to_factor(job->kernels, job->is_bf16, msa__factor_at(gate_rows, job->is_bf16, j * ld),
                       gate + row, MSA_DTYPE_F32, n);
        msa__to_factor(job->kernels, job->is_bf16, msa__factor_at(up_rows, job->is_bf16, j * ld),
                       up + row, MSA_DTYPE_F32, n);
    }
    if (gradients_of(job, segment)) {
        store_columns(job, segment, first, n, gate, up, hidden, thread);
    }
}

/* The gradients of the routing weights: the shares of a column's blocks, in order. */
void msa__moe_write_d_weights(const msa__moe_gradient *job)
{
    const msa_moe_backward_args *args = job->args;
    for (int64_t s = 0; s < job->wave.n_segments; s++) {
        const msa__moe_segment *segment = &job->wave.segments[s];
        if (segment->expert >= args->n_experts) continue;
        float *d_weights = args->d_weights + job->first_token * args->topk;
        for (int64_t j = 0; j < segment->n_columns; j++) {
            const float *shares = job->shares + (segment->panel * MSA__PANEL + j) * job->n_blocks;
            float sum = 0;
            for (int64_t b = 0; b < msa__moe_hidden_items(job, segment); b++) sum += shares[b];
            d_weights[job->route.choice[segment->column + j]] = sum;
        }
    }
}
