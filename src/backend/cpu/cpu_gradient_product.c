/* See cpu_gradient_product.h. */
#include "backend/cpu/cpu_gradient_product.h"

#include "base/overflow.h"

#include <string.h>

/* Scratch: packed panels, then the last columns of a matrix beside zeros, or one panel of sums. */
#define PACKED_BYTES (sizeof(float) * MSA__BLOCK_DEPTH * MSA__BLOCK)
#define STAGED_BYTES (sizeof(float) * MSA__BLOCK_DEPTH * MSA__PANEL)

size_t msa__block_scratch_bytes(void)
{
    return PACKED_BYTES + STAGED_BYTES;
}

static void multiply(const msa__cpu_kernels *kernels, int32_t is_bf16, int64_t m, int64_t n_panels,
                     int64_t k, const void *a, int64_t lda, const void *b, float *c, int64_t ldc,
                     int32_t accumulate)
{
    if (is_bf16) {
        kernels->gemm_bf16(m, n_panels, k, a, lda, b, c, ldc, accumulate);
    } else {
        kernels->gemm_f32(m, n_panels, k, a, lda, b, c, ldc, accumulate);
    }
}

size_t msa__token_panel_bytes(int32_t is_bf16, int64_t n_tokens)
{
    return (size_t)(n_tokens + (is_bf16 ? n_tokens & 1 : 0)) * MSA__PANEL * (is_bf16 ? 2 : 4);
}

static void pack_panels(const msa__cpu_kernels *kernels, int32_t is_bf16, void *panels,
                        const void *rows, msa_dtype dtype, int64_t ld, int64_t n_rows, int64_t n)
{
    if (is_bf16) {
        kernels->pack_rows_bf16(panels, rows, dtype, ld, n_rows, n_rows, n);
    } else {
        kernels->pack_rows_f32(panels, rows, dtype, ld, n_rows, n_rows, n);
    }
}

/* The kernel packs whole panels; what is left of a row is copied beside zeros first. */
static void pack_rows(const msa__cpu_kernels *kernels, int32_t is_bf16, void *panels,
                      const void *rows, msa_dtype dtype, int64_t ld, int64_t n_rows, int64_t n,
                      void *staged)
{
    int64_t whole = n / MSA__PANEL * MSA__PANEL, rest = n - whole;
    size_t size = msa_dtype_bytes(dtype), row_bytes = MSA__PANEL * size;
    if (whole) pack_panels(kernels, is_bf16, panels, rows, dtype, ld, n_rows, whole);
    if (!rest) return;
    memset(staged, 0, (size_t)n_rows * row_bytes);
    for (int64_t l = 0; l < n_rows; l++) {
        memcpy((char *)staged + (size_t)l * row_bytes,
               (const char *)rows + (size_t)(l * ld + whole) * size, (size_t)rest * size);
    }
    char *last =
        (char *)panels + (size_t)(whole / MSA__PANEL) * msa__token_panel_bytes(is_bf16, n_rows);
    pack_panels(kernels, is_bf16, last, staged, dtype, MSA__PANEL, n_rows, MSA__PANEL);
}

/* Columns of the transpose are rows of W. */
static void pack_transposed(const msa__cpu_kernels *kernels, int32_t is_bf16, void *panels,
                            const void *rows, msa_dtype dtype, int64_t ld, int64_t k, int64_t n)
{
    for (int64_t j = 0; j < n; j += MSA__PANEL) {
        int64_t n_rows = n - j < MSA__PANEL ? n - j : MSA__PANEL;
        const void *src = (const char *)rows + (size_t)(j * ld) * msa_dtype_bytes(dtype);
        void *panel =
            (char *)panels + (size_t)(j / MSA__PANEL) * msa__token_panel_bytes(is_bf16, k);
        if (is_bf16) {
            kernels->pack_columns_bf16(panel, src, dtype, ld, n_rows, k);
        } else {
            kernels->pack_columns_f32(panel, src, dtype, ld, n_rows, k);
        }
    }
}

void msa__multiply_block(const msa__cpu_kernels *kernels, int32_t is_bf16, int64_t n_tokens,
                         const void *a, int64_t lda, const msa__block *block, float *c, int64_t ldc,
                         int32_t accumulate, void *scratch)
{
    const msa_tensor *w = block->w;
    int64_t n_panels = msa__ceil_div(block->n, MSA__PANEL), ld = w->stride[0];
    void *staged = (char *)scratch + PACKED_BYTES;
    if (is_bf16) kernels->enter();
    for (int64_t l = 0; l < block->depth; l += MSA__BLOCK_DEPTH) {
        int64_t k = block->depth - l < MSA__BLOCK_DEPTH ? block->depth - l : MSA__BLOCK_DEPTH;
        int64_t at = block->first_depth + l;
        int64_t first = block->is_transposed ? block->first * ld + at : at * ld + block->first;
        const void *src = (const char *)w->data + first * (int64_t)msa_dtype_bytes(w->dtype);
        if (block->is_transposed) {
            pack_transposed(kernels, is_bf16, scratch, src, w->dtype, ld, k, block->n);
        } else {
            pack_rows(kernels, is_bf16, scratch, src, w->dtype, ld, k, block->n, staged);
        }
        multiply(kernels, is_bf16, n_tokens, n_panels, k, msa__factor_at(a, is_bf16, l), lda,
                 scratch, c, ldc, accumulate || l > 0);
    }
    if (is_bf16) kernels->leave();
}

void msa__pack_tokens(const msa__cpu_kernels *kernels, int32_t is_bf16, void *panels,
                      const void *rows, msa_dtype dtype, int64_t ld, int64_t n_tokens, int64_t n,
                      void *scratch)
{
    pack_rows(kernels, is_bf16, panels, rows, dtype, ld, n_tokens, n, scratch);
}

void msa__transpose_tokens(const msa__cpu_kernels *kernels, int32_t is_bf16, void *dst, int64_t ld,
                           const float *rows, int64_t n_tokens, int64_t n)
{
    kernels->unpack_columns(dst, is_bf16 ? MSA_DTYPE_BF16 : MSA_DTYPE_F32, ld, rows, MSA__BLOCK, n,
                            n_tokens, 0);
}

void msa__add_outer(const msa__cpu_kernels *kernels, int32_t is_bf16, int64_t n_rows,
                    int64_t n_tokens, const void *a, int64_t lda, const void *panels,
                    const msa_tensor *d_weight, int64_t row, void *scratch)
{
    int64_t whole = d_weight->shape[1] / MSA__PANEL, ld = d_weight->stride[0];
    int64_t rest = d_weight->shape[1] - whole * MSA__PANEL;
    float *dst = (float *)d_weight->data + row * ld, *sums = scratch;
    if (is_bf16) kernels->enter();
    if (whole) multiply(kernels, is_bf16, n_rows, whole, n_tokens, a, lda, panels, dst, ld, 1);
    if (rest) {
        const char *last =
            (const char *)panels + (size_t)whole * msa__token_panel_bytes(is_bf16, n_tokens);
        multiply(kernels, is_bf16, n_rows, 1, n_tokens, a, lda, last, sums, MSA__PANEL, 0);
    }
    if (is_bf16) kernels->leave();
    for (int64_t i = 0; i < n_rows; i++) {
        float *left = dst + i * ld + whole * MSA__PANEL;
        for (int64_t j = 0; j < rest; j++) left[j] += sums[i * MSA__PANEL + j];
    }
}

void msa__to_factor(const msa__cpu_kernels *kernels, int32_t is_bf16, void *dst, const void *src,
                    msa_dtype dtype, int64_t n)
{
    if (is_bf16) {
        kernels->to_bf16(dst, src, dtype, n);
    } else {
        kernels->to_f32(dst, src, dtype, n);
    }
}
