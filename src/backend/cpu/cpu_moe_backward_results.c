/* The last two jobs of a wave of the experts' gradient: columns of dx, rows of the weights'
 * gradients; see cpu_moe_backward.c. */
#include "backend/cpu/cpu_moe_backward.h"

#include <string.h>

static void write_columns(const msa__moe_gradient *job, int64_t first, int64_t n)
{
    const msa_tensor *dx = &job->args->dx;
    float before[MSA__BLOCK];
    for (int64_t t = 0; t < job->n_tokens; t++) {
        float *sum = job->sums + t * job->n_in + first;
        void *dst = (void *)(uintptr_t)element(dx, job->first_token + t, first);
        if (job->args->accumulate) {
            job->kernels->to_f32(before, dst, dx->dtype, n);
            for (int64_t i = 0; i < n; i++) sum[i] += before[i];
        }
        job->kernels->from_f32(dst, dx->dtype, sum, n);
    }
}

/* Item: a block of dx's columns, all segments. */
void msa__moe_dx_item(void *arg, int64_t item, int32_t thread)
{
    const msa__moe_gradient *job = arg;
    int64_t first = item * MSA__BLOCK, n = block_width(job->n_in, first);
    float *rows = tile_of(job, thread, 0);
    for (int64_t t = 0; t < job->n_tokens && job->wave.is_first; t++) {
        memset(job->sums + t * job->n_in + first, 0, (size_t)n * sizeof(float));
    }
    for (int64_t s = 0; s < job->wave.n_segments; s++) {
        const msa__moe_segment *segment = &job->wave.segments[s];
        const msa_mlp_weights *mlp = mlp_of(job, segment);
        msa__moe_multiply_rows(job, segment, hidden_at(job, job->gate_rows, segment, 0), &mlp->gate,
                               0, first, n, rows, 0, thread);
        msa__moe_multiply_rows(job, segment, hidden_at(job, job->up_rows, segment, 0), &mlp->up, 0,
                               first, n, rows, 1, thread);
        for (int64_t j = 0; j < segment->n_columns; j++) {
            float *sum = job->sums + job->route.token[segment->column + j] * job->n_in + first;
            for (int64_t i = 0; i < n; i++) sum[i] += rows[j * MSA__BLOCK + i];
        }
    }
    if (job->wave.is_last) write_columns(job, first, n);
}

/* Work items of a segment's three weights: rows of gate, of up, of down. */
int64_t msa__moe_weight_items(const msa__moe_gradient *job, const msa__moe_segment *segment)
{
    if (!gradients_of(job, segment)) return 0;
    return 2 * msa__ceil_div(hidden_of(job, segment), job->weight_rows) +
           msa__ceil_div(job->n_in, job->weight_rows);
}

void msa__moe_weight_item(void *arg, int64_t item, int32_t thread)
{
    const msa__moe_gradient *job = arg;
    const msa__moe_segment *segment = job->wave.segments;
    for (; item >= msa__moe_weight_items(job, segment); segment++)
        item -= msa__moe_weight_items(job, segment);
    const msa_mlp_gradients *gradients = gradients_of(job, segment);
    int64_t width = hidden_of(job, segment), items = msa__ceil_div(width, job->weight_rows);
    int64_t pitch = pitch_of(segment), row = item % items * job->weight_rows;
    const msa_tensor *d_weight = item < items ? &gradients->gate : &gradients->up;
    const void *panels = inputs_at(job, job->x_panels, segment, 0);
    const void *columns =
        hidden_at(job, item < items ? job->gate_columns : job->up_columns, segment, row * pitch);
    if (item >= 2 * items) {
        row = (item - 2 * items) * job->weight_rows;
        d_weight = &gradients->down;
        panels = hidden_at(job, job->hidden_panels, segment, 0);
        columns = inputs_at(job, job->d_columns, segment, row * pitch);
    }
    int64_t left = d_weight->shape[0] - row;
    msa__add_outer(job->kernels, job->is_bf16, left < job->weight_rows ? left : job->weight_rows,
                   segment->n_columns, columns, pitch, panels, d_weight, row,
                   scratch_of(job, thread));
}
