/* The AVX2 micro-kernels that live outside avx2.c. */
#ifndef MSA_CPU_AVX2_H
#define MSA_CPU_AVX2_H

#include "backend/cpu/isa/kernels.h"

void msa__avx2_pack_columns_f32(float *panel, const void *src, msa_dtype dtype, int64_t ld,
                                int64_t n_rows, int64_t k);
void msa__avx2_pack_columns_bf16(uint16_t *panel, const void *src, msa_dtype dtype, int64_t ld,
                                 int64_t n_rows, int64_t k);
void msa__avx2_pack_rows_f32(float *panels, const void *src, msa_dtype dtype, int64_t ld,
                             int64_t n_rows, int64_t k, int64_t n);
void msa__avx2_pack_rows_bf16(uint16_t *panels, const void *src, msa_dtype dtype, int64_t ld,
                              int64_t n_rows, int64_t k, int64_t n);
void msa__avx2_to_f32(float *dst, const void *src, msa_dtype dtype, int64_t n);
void msa__avx2_to_bf16(uint16_t *dst, const void *src, msa_dtype dtype, int64_t n);
void msa__avx2_from_f32(void *dst, msa_dtype dtype, const float *src, int64_t n);

#endif
