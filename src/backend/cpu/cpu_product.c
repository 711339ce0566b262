/* See cpu_product.h. */
#include "backend/cpu/cpu_product.h"

#include "base/numeric.h"
#include "base/overflow.h"

#include <string.h>

/* Converted rows are not a power of two apart: they would share a few sets of the cache. */
#define SCRATCH_PAD 32

int32_t msa__product_is_bf16(msa_dtype x_dtype, const msa_weight *weight)
{
    return x_dtype == MSA_DTYPE_BF16 &&
           (weight->w.dtype == MSA_DTYPE_BF16 || weight->w.dtype == MSA_DTYPE_F8_E4M3);
}

size_t msa__packed_bytes(int32_t is_bf16, int64_t k, int64_t n_panels)
{
    return (size_t)(k + (k & 1)) * (size_t)n_panels * MSA__PANEL * (is_bf16 ? 2 : 4);
}

void *msa__packed_at(void *packed, int32_t is_bf16, int64_t k, int64_t n_panels, int64_t panel,
                     int64_t l)
{
    int64_t chunk = l - l % MSA__K_CHUNK;
    int64_t chunk_k = k - chunk < MSA__K_CHUNK ? k - chunk : MSA__K_CHUNK;
    if (is_bf16) chunk_k += chunk_k & 1;
    int64_t row = chunk * n_panels + panel * chunk_k + (l - chunk);
    return (char *)packed + row * MSA__PANEL * (is_bf16 ? 2 : 4);
}

int64_t msa__product_rows(int64_t n_rows, int64_t n_tokens, int32_t n_threads)
{
    int64_t rows = n_tokens <= MSA__PANEL ? 32 : MSA__PRODUCT_ROWS;
    while (rows > 32 && n_rows < 4 * n_threads * rows) rows /= 2; /* four items a thread even out */
    return rows;
}

size_t msa__product_scratch_bytes(void)
{
    return sizeof(float) * MSA__PRODUCT_ROWS * (MSA__K_CHUNK + SCRATCH_PAD);
}

/* A row is a new stream for the hardware; it would wait for memory at the start of each. */
#define PREFETCH_ROWS 4

static void prefetch_row(const msa_weight *weight, int64_t row, int64_t l, int64_t n)
{
    const msa_tensor *w = &weight->w;
    int64_t size = (int64_t)msa_dtype_bytes(w->dtype);
    if (row >= w->shape[0]) return;
    const char *data = (const char *)w->data + (row * w->stride[0] + l) * size;
    for (int64_t i = 0; i < n * size; i += 64) __builtin_prefetch(data + i, 0, 2);
}

/* n inputs from l of a weight row, as the product wants them. */
static void convert_row(const msa__cpu_kernels *kernels, int32_t is_bf16, const msa_weight *weight,
                        int64_t row, int64_t l, int64_t n, void *dst)
{
    const msa_tensor *w = &weight->w, *scales = &weight->scales;
    const unsigned char *src = w->data;
    src += (row * w->stride[0] + l) * (int64_t)msa_dtype_bytes(w->dtype);
    if (w->dtype != MSA_DTYPE_F8_E4M3) {
        kernels->to_f32(dst, src, w->dtype, n);
        return;
    }
    const uint8_t *scale = (const uint8_t *)scales->data + row * scales->stride[0] + l / 32;
    if (is_bf16) {
        kernels->mxfp8_to_bf16(dst, src, scale, n);
        return;
    }
    float *values = dst;
    kernels->to_f32(values, src, w->dtype, n);
    for (int64_t i = 0; i < n; i += 32) {
        float factor = e8m0_to_f32(scale[i / 32]);
        for (int64_t j = i; j < i + 32; j++) values[j] *= factor;
    }
}

void msa__product(const msa__cpu_kernels *kernels, int32_t is_bf16, const msa_weight *weight,
                  int64_t row, int64_t n_rows, void *packed, int64_t n_tokens, float *c,
                  int64_t ldc, void *scratch)
{
    const msa_tensor *w = &weight->w;
    int64_t k = w->shape[1], n_panels = msa__ceil_div(n_tokens, MSA__PANEL);
    int32_t in_place = w->dtype == (is_bf16 ? MSA_DTYPE_BF16 : MSA_DTYPE_F32);
    int32_t is_narrow = n_tokens <= MSA__GEMV_COLUMNS;
    if (is_narrow) memset(c, 0, (size_t)(n_rows * ldc) * sizeof(*c));
    if (is_bf16) kernels->enter();
    for (int64_t l = 0; l < k; l += MSA__K_CHUNK) {
        int64_t n = k - l < MSA__K_CHUNK ? k - l : MSA__K_CHUNK, lda = n + SCRATCH_PAD;
        size_t size = is_bf16 ? 2 : 4;
        const void *a = scratch, *b = msa__packed_at(packed, is_bf16, k, n_panels, 0, l);
        if (in_place) {
            a = (const char *)w->data + (size_t)(row * w->stride[0] + l) * size;
            lda = w->stride[0];
        }
        for (int64_t i = 0; !in_place && i < n_rows; i++) {
            prefetch_row(weight, row + i + PREFETCH_ROWS, l, n);
            convert_row(kernels, is_bf16, weight, row + i, l, n,
                        (char *)scratch + (size_t)(i * lda) * size);
        }
        if (is_bf16 && is_narrow) {
            kernels->gemv_bf16(n_rows, n_tokens, n, a, lda, b, c, ldc, l > 0);
        } else if (is_bf16) {
            kernels->gemm_bf16(n_rows, n_panels, n, a, lda, b, c, ldc, l > 0);
        } else if (is_narrow) {
            kernels->gemv_f32(n_rows, n_tokens, n, a, lda, b, c, ldc, l > 0);
        } else {
            kernels->gemm_f32(n_rows, n_panels, n, a, lda, b, c, ldc, l > 0);
        }
    }
    if (is_bf16) kernels->leave();
}
