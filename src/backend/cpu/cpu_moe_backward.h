/* One wave of the gradient of a mixture of experts: what its jobs share, and where things lie. */
#ifndef MSA_CPU_MOE_BACKWARD_H
#define MSA_CPU_MOE_BACKWARD_H

#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/cpu_gradient_product.h"
#include "backend/cpu/cpu_moe_route.h"
#include "backend/cpu/cpu_product.h"
#include "base/overflow.h"

#define MSA__MOE_WAVE_TOKENS (MSA__WAVE_PANELS * MSA__PANEL)
#define MSA__MOE_TILE_FLOATS (MSA__MOE_WAVE_TOKENS * MSA__BLOCK)
#define MSA__MOE_TILES       5

typedef struct msa__moe_gradient {
    const msa__cpu_kernels *kernels;
    const msa_moe_backward_args *args;
    msa_moe_args forward;
    int32_t is_bf16;
    int64_t n_in, n_hidden_max, max_tokens, first_token, n_tokens;
    int64_t n_blocks; /* of the widest hidden row */
    int64_t weight_rows;
    msa__moe_route route;
    msa__moe_wave wave;
    /* Of the wave's columns, segment by segment: rows [column, *], transposed [*, columns of the
     * segment up to whole panels], or panels. bf16 or f32. */
    void *x_rows, *x_panels, *d_rows, *d_columns;
    void *hidden_panels, *gate_rows, *up_rows, *gate_columns, *up_columns;
    float *shares; /* [MSA__MOE_WAVE_TOKENS, n_blocks] of the routing weights' gradients */
    float *sums;   /* [max_tokens, n_in] */
    float *tiles;  /* [threads][MSA__MOE_TILES][MSA__MOE_TILE_FLOATS] */
    unsigned char *scratch;
} msa__moe_gradient;

/* Work items of the four jobs, for msa__parallel_for; arg is the msa__moe_gradient. */
void msa__moe_gather_item(void *arg, int64_t item, int32_t thread);
void msa__moe_hidden_item(void *arg, int64_t item, int32_t thread);
void msa__moe_dx_item(void *arg, int64_t item, int32_t thread);
void msa__moe_weight_item(void *arg, int64_t item, int32_t thread);

/* Hidden and weight items of a segment. */
int64_t msa__moe_hidden_items(const msa__moe_gradient *job, const msa__moe_segment *segment);
int64_t msa__moe_weight_items(const msa__moe_gradient *job, const msa__moe_segment *segment);

/* After the hidden job: the gradients of the routing weights. */
void msa__moe_write_d_weights(const msa__moe_gradient *job);

/* ---- where things lie ------------------------------------------------------------------------ */

static inline int64_t whole_panels(int64_t n)
{
    return msa__ceil_div(n, MSA__PANEL) * MSA__PANEL;
}

static inline const msa_mlp_weights *mlp_of(const msa__moe_gradient *job,
                                            const msa__moe_segment *segment)
{
    const msa_moe_backward_args *args = job->args;
    return segment->expert < args->n_experts ? &args->experts[segment->expert] : args->shared;
}

/* NULL: frozen. */
static inline const msa_mlp_gradients *gradients_of(const msa__moe_gradient *job,
                                                    const msa__moe_segment *segment)
{
    const msa_moe_backward_args *args = job->args;
    if (segment->expert >= args->n_experts) return args->d_shared;
    return args->d_experts ? &args->d_experts[segment->expert] : NULL;
}

static inline int64_t hidden_of(const msa__moe_gradient *job, const msa__moe_segment *segment)
{
    return mlp_of(job, segment)->gate.w.shape[0];
}

/* Tokens of a segment up to whole panels: the pitch of transposed columns. */
static inline int64_t pitch_of(const msa__moe_segment *segment)
{
    return segment->n_panels * MSA__PANEL;
}

/* First element of a segment in an array over inputs, or over hidden columns, whose number may
 * differ from expert to expert. */
static inline void *inputs_at(const msa__moe_gradient *job, const void *array,
                              const msa__moe_segment *segment, int64_t offset)
{
    int64_t at = segment->panel * MSA__PANEL * whole_panels(job->n_in) + offset;
    return msa__factor_at(array, job->is_bf16, at);
}

static inline void *hidden_at(const msa__moe_gradient *job, const void *array,
                              const msa__moe_segment *segment, int64_t offset)
{
    int64_t at = segment->panel * MSA__PANEL * whole_panels(job->n_hidden_max) + offset;
    return msa__factor_at(array, job->is_bf16, at);
}

/* Panels of a segment from column `first` on. */
static inline void *panels_from(const msa__moe_gradient *job, void *panels,
                                const msa__moe_segment *segment, int64_t first)
{
    size_t bytes = msa__token_panel_bytes(job->is_bf16, segment->n_columns);
    return (char *)panels + (size_t)(first / MSA__PANEL) * bytes;
}

static inline float *tile_of(const msa__moe_gradient *job, int32_t thread, int which)
{
    return job->tiles + ((int64_t)thread * MSA__MOE_TILES + which) * MSA__MOE_TILE_FLOATS;
}

static inline void *scratch_of(const msa__moe_gradient *job, int32_t thread)
{
    return job->scratch + (size_t)thread * msa__block_scratch_bytes();
}

static inline int64_t block_width(int64_t n, int64_t first)
{
    return n - first < MSA__BLOCK ? n - first : MSA__BLOCK;
}

static inline const void *element(const msa_tensor *t, int64_t row, int64_t column)
{
    return (const char *)t->data +
           (row * t->stride[0] + column) * (int64_t)msa_dtype_bytes(t->dtype);
}

/* Columns first..first+n-1 of the rows of a segment times a weight, or times its transpose. */
static inline void msa__moe_multiply_rows(const msa__moe_gradient *job,
                                          const msa__moe_segment *segment, const void *rows,
                                          const msa_weight *weight, int32_t is_transposed,
                                          int64_t first, int64_t n, float *c, int32_t accumulate,
                                          int32_t thread)
{
    const msa_tensor *w = &weight->w;
    int64_t depth = w->shape[is_transposed ? 1 : 0];
    msa__block block = {w, is_transposed, first, n, 0, depth};
    msa__multiply_block(job->kernels, job->is_bf16, segment->n_columns, rows, whole_panels(depth),
                        &block, c, MSA__BLOCK, accumulate, scratch_of(job, thread));
}

#endif
