/* The micro-kernels an ISA provides; everything else of the cpu backend is written once on top.
 *
 * One matrix kernel serves scoring, attention and linear layers. It multiplies a row-major A, used
 * where it lies (keys in the cache, weights in the file), by a B packed in panels of 16 columns
 * (queries, probabilities' values, activations):
 *
 *     C[i, 16 p + j] (+)= sum_k A[i, k] * B_p[k, j]        0 <= i < m, 0 <= p < n_panels, 0 <= j <
 * 16
 *
 * f32 panel   [k][16]                 panel p starts at b + p * 16 * k
 * bf16 panel  [ceil(k/2)][16][2]      pairs of k beside each other ("VNNI"), odd tail zero;
 *                                     panel p starts at b + p * 32 * ceil(k/2)
 *
 * The sum of an element runs over k in one fixed order that does not depend on m, n_panels or
 * position, so results do not depend on how a caller cuts its work.
 */
#ifndef MSA_CPU_KERNELS_H
#define MSA_CPU_KERNELS_H

#include "msa/layer.h"

#define MSA__PANEL        16
#define MSA__GEMV_COLUMNS 4

typedef struct msa__cpu_kernels {
    const char *name;
    int32_t (*usable)(void); /* this machine can run it; asks the system for AMX permission */

    /* Around a run of gemm_bf16 and gemv_bf16 calls on one thread (AMX loads and releases its tile
     * shapes). */
    void (*enter)(void);
    void (*leave)(void);

    void (*gemm_f32)(int64_t m, int64_t n_panels, int64_t k, const float *a, int64_t lda,
                     const float *b, float *c, int64_t ldc, int32_t accumulate);
    void (*gemm_bf16)(int64_t m, int64_t n_panels, int64_t k, const uint16_t *a, int64_t lda,
                      const uint16_t *b, float *c, int64_t ldc, int32_t accumulate);

    /* One panel from up to 16 source rows that become its columns: B[k, j] = src[j][k], src row j
     * at src + j * ld elements of dtype f32, bf16, f16 or fp8; columns n_rows..15 are zero. */
    void (*pack_columns_f32)(float *panel, const void *src, msa_dtype dtype, int64_t ld,
                             int64_t n_rows, int64_t k);
    void (*pack_columns_bf16)(uint16_t *panel, const void *src, msa_dtype dtype, int64_t ld,
                              int64_t n_rows, int64_t k);
    /* n/16 panels from rows that are B's rows: B[k, j] = src[k][j]; rows n_rows..k-1 are zero and
     * are not read. n is a multiple of 16. */
    void (*pack_rows_f32)(float *panels, const void *src, msa_dtype dtype, int64_t ld,
                          int64_t n_rows, int64_t k, int64_t n);
    void (*pack_rows_bf16)(uint16_t *panels, const void *src, msa_dtype dtype, int64_t ld,
                           int64_t n_rows, int64_t k, int64_t n);

    /* n contiguous elements between dtypes. */
    void (*to_f32)(float *dst, const void *src, msa_dtype dtype, int64_t n);
    void (*to_bf16)(uint16_t *dst, const void *src, msa_dtype dtype, int64_t n);
    void (*from_f32)(void *dst, msa_dtype dtype, const float *src, int64_t n);

    /* n values of an MXFP8 row, one scale byte per 32; n is a multiple of 32. */
    void (*mxfp8_to_bf16)(uint16_t *dst, const uint8_t *src, const uint8_t *scales, int64_t n);

    /* C back to rows: dst[j * ld + i] (+)= c[i * ldc + j], 0 <= i < n, 0 <= j < n_columns; one sum
     * in f32, one rounding. */
    void (*unpack_columns)(void *dst, msa_dtype dtype, int64_t ld, const float *c, int64_t ldc,
                           int64_t n_columns, int64_t n, int32_t accumulate);

    /* The first n_columns (1..MSA__GEMV_COLUMNS) columns of gemm with one panel, the same bits, at
     * the speed of reading A. The panel's other columns of C may be overwritten. */
    void (*gemv_f32)(int64_t m, int64_t n_columns, int64_t k, const float *a, int64_t lda,
                     const float *b, float *c, int64_t ldc, int32_t accumulate);
    void (*gemv_bf16)(int64_t m, int64_t n_columns, int64_t k, const uint16_t *a, int64_t lda,
                      const uint16_t *b, float *c, int64_t ldc, int32_t accumulate);

    /* y[i] = activation of gate[i] and up[i]; y may be gate or up. */
    void (*gated)(float *y, const float *gate, const float *up, const msa_activation *activation,
                  int64_t n);

    /* Its gradient: d_gate and d_up from gate, up and d_out; they may be gate, up or d_out. */
    void (*gated_backward)(float *d_gate, float *d_up, const float *gate, const float *up,
                           const float *d_out, const msa_activation *activation, int64_t n);

    /* y[i] = exp(x[i] - top) where x[i] <= top, 0 below -87; y is other memory than x. */
    void (*exp_below)(float *y, const float *x, float top, int64_t n);

    /* Attention steps over tiles; defined beside their use. */
    const struct msa__attend_kernels *attend;
} msa__cpu_kernels;

/* Best first, NULL at the end: amx, avx512, avx2, neon, generic, as compiled in. */
extern const msa__cpu_kernels *const msa__cpu_kernel_tables[];

#endif
