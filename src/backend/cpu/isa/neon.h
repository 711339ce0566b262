/* The NEON micro-kernels that live outside neon.c. */
#ifndef MSA_CPU_NEON_H
#define MSA_CPU_NEON_H

#include "backend/cpu/isa/kernels.h"

void msa__neon_pack_columns_f32(float *panel, const void *src, msa_dtype dtype, int64_t ld,
                                int64_t n_rows, int64_t k);
void msa__neon_pack_columns_bf16(uint16_t *panel, const void *src, msa_dtype dtype, int64_t ld,
                                 int64_t n_rows, int64_t k);
void msa__neon_pack_rows_f32(float *panels, const void *src, msa_dtype dtype, int64_t ld,
                             int64_t n_rows, int64_t k, int64_t n);
void msa__neon_pack_rows_bf16(uint16_t *panels, const void *src, msa_dtype dtype, int64_t ld,
                              int64_t n_rows, int64_t k, int64_t n);
void msa__neon_to_f32(float *dst, const void *src, msa_dtype dtype, int64_t n);
void msa__neon_to_bf16(uint16_t *dst, const void *src, msa_dtype dtype, int64_t n);
void msa__neon_from_f32(void *dst, msa_dtype dtype, const float *src, int64_t n);
void msa__neon_mxfp8_to_bf16(uint16_t *dst, const uint8_t *src, const uint8_t *scales, int64_t n);
void msa__neon_unpack_columns(void *dst, msa_dtype dtype, int64_t ld, const float *c, int64_t ldc,
                              int64_t n_columns, int64_t n, int32_t accumulate);

void msa__neon_gemv_f32(int64_t m, int64_t n_columns, int64_t k, const float *a, int64_t lda,
                        const float *b, float *c, int64_t ldc, int32_t accumulate);
void msa__neon_gemv_bf16(int64_t m, int64_t n_columns, int64_t k, const uint16_t *a, int64_t lda,
                         const uint16_t *b, float *c, int64_t ldc, int32_t accumulate);

#endif
