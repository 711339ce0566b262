/* See cpu_times.h. */
#include "backend/cpu/cpu_times.h"

#include "base/overflow.h"

void msa__times(const msa__cpu_kernels *kernels, float *panels, int64_t m, int64_t k, int64_t n,
                const float *a, int64_t lda, const float *b, float *c, int64_t ldc,
                int32_t accumulate)
{
    kernels->pack_rows_f32(panels, b, MSA_DTYPE_F32, n, k, k, n);
    kernels->gemm_f32(m, n / MSA__PANEL, k, a, lda, panels, c, ldc, accumulate);
}

void msa__times_transposed(const msa__cpu_kernels *kernels, float *panels, int64_t m, int64_t k,
                           int64_t n, const float *a, int64_t lda, const float *b, float *c,
                           int64_t ldc, int32_t accumulate)
{
    int64_t n_panels = msa__ceil_div(n, MSA__PANEL);
    for (int64_t p = 0; p < n_panels; p++) {
        int64_t left = n - p * MSA__PANEL;
        kernels->pack_columns_f32(panels + p * MSA__PANEL * k, b + p * MSA__PANEL * k,
                                  MSA_DTYPE_F32, k, left < MSA__PANEL ? left : MSA__PANEL, k);
    }
    kernels->gemm_f32(m, n_panels, k, a, lda, panels, c, ldc, accumulate);
}
