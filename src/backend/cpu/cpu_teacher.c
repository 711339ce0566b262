/* See cpu_teacher.h. */
#include "backend/cpu/cpu_teacher.h"

#include <string.h>

msa__teacher msa__teacher_make(const msa__cpu_kernels *kernels, const msa__selection *selection,
                               const msa_tensor *q, const msa_tensor *lse, float scale)
{
    const msa_tensor *k = &selection->kv->k;
    int32_t bf16 = q->dtype == MSA_DTYPE_BF16 && k->dtype != MSA_DTYPE_F32;
    return (msa__teacher){.selection = selection,
                          .q = q,
                          .lse = lse,
                          .by = {kernels, bf16},
                          .group = q->shape[1] / k->shape[1],
                          .dim = q->shape[2],
                          .scale = scale * selection->kv->k_scale};
}

void msa__teacher_scratch_take(const msa__teacher *teacher, msa__arena *arena,
                               msa__teacher_scratch *scratch)
{
    int64_t rows = MSA__GRADIENT_ROWS, block_size = teacher->selection->block_size;
    size_t bytes = msa__number_bytes(teacher->by);
    scratch->k_columns = msa__take(arena, block_size * teacher->dim, bytes);
    scratch->q = msa__take(arena, rows * teacher->dim, bytes);
    scratch->shift = msa__take(arena, rows * MSA__PANEL, sizeof(float));
    scratch->scores = msa__take(arena, rows * block_size, sizeof(float));
}

void msa__teacher_load(const msa__teacher *teacher, const msa__teacher_scratch *scratch,
                       const msa__pairs *pairs, int64_t r)
{
    const msa_kv_view *kv = teacher->selection->kv;
    msa__kv_tile tile = msa__kv_block(kv, &kv->k, pairs->seq, pairs->block, (int32_t)r,
                                      teacher->selection->block_size);
    msa__rows_as_columns(teacher->by, tile.data, kv->k.dtype, tile.row_stride, pairs->n_keys,
                         teacher->dim, scratch->k_columns);
}

static void spread_shifts(const msa__teacher *teacher, const int32_t *tokens, int64_t n_tokens,
                          int64_t first_head, float *shift)
{
    for (int64_t t = 0; t < n_tokens; t++) {
        for (int64_t h = 0; h < teacher->group; h++, shift += MSA__PANEL) {
            float x = msa__shift_of(teacher->lse, tokens[t], first_head + h);
            for (int i = 0; i < MSA__PANEL; i++) shift[i] = x;
        }
    }
}

/* Mean of n_heads rows. */
static void mean_rows(const float *rows, int64_t ld, int64_t n_heads, float *mean)
{
    float factor = 1.0f / (float)n_heads;
    memset(mean, 0, (size_t)ld * sizeof(float));
    for (int64_t h = 0; h < n_heads; h++) {
        for (int64_t j = 0; j < ld; j++) mean[j] += rows[h * ld + j];
    }
    for (int64_t j = 0; j < ld; j++) mean[j] *= factor;
}

void msa__teacher_weights(const msa__teacher *teacher, const msa__teacher_scratch *scratch,
                          const msa__pairs *pairs, int64_t r, float *mean)
{
    int64_t group = teacher->group, dim = teacher->dim, first_head = r * group;
    int64_t batch = MSA__GRADIENT_ROWS / group, panels = msa__panels_of(pairs->n_keys);
    int64_t ld = panels * MSA__PANEL;
    for (int64_t first = 0; first < pairs->n; first += batch) {
        const int32_t *tokens = pairs->tokens + first;
        int64_t n = pairs->n - first < batch ? pairs->n - first : batch;
        msa__gather_rows(teacher->by, teacher->q, tokens, n, first_head, group, scratch->q);
        spread_shifts(teacher, tokens, n, first_head, scratch->shift);
        msa__multiply(teacher->by, n * group, panels, dim, scratch->q, dim, scratch->k_columns,
                      scratch->scores, ld, 0);
        msa__hide_keys(teacher->selection, pairs, scratch->scores, ld, first, n, group);
        teacher->by.kernels->attend->weigh(scratch->scores, ld, n * group, ld,
                                           teacher->scale * MSA__LOG2_E,
                                           msa__per_row(scratch->shift));
        for (int64_t t = 0; t < n; t++) {
            mean_rows(scratch->scores + t * group * ld, ld, group, mean + (first + t) * ld);
        }
    }
}
