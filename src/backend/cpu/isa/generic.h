/* The portable micro-kernels that other tables borrow where vector code gains nothing. */
#ifndef MSA_CPU_GENERIC_H
#define MSA_CPU_GENERIC_H

#include "backend/cpu/isa/kernels.h"

extern const msa__cpu_kernels msa__kernels_generic;

int32_t msa__generic_usable(void);
void msa__generic_enter(void);
void msa__generic_leave(void);

void msa__generic_pack_columns_f32(float *panel, const void *src, msa_dtype dtype, int64_t ld,
                                   int64_t n_rows, int64_t k);
void msa__generic_pack_columns_bf16(uint16_t *panel, const void *src, msa_dtype dtype, int64_t ld,
                                    int64_t n_rows, int64_t k);
void msa__generic_pack_rows_f32(float *panels, const void *src, msa_dtype dtype, int64_t ld,
                                int64_t n_rows, int64_t k, int64_t n);
void msa__generic_pack_rows_bf16(uint16_t *panels, const void *src, msa_dtype dtype, int64_t ld,
                                 int64_t n_rows, int64_t k, int64_t n);

void msa__generic_to_f32(float *dst, const void *src, msa_dtype dtype, int64_t n);
void msa__generic_to_bf16(uint16_t *dst, const void *src, msa_dtype dtype, int64_t n);
void msa__generic_from_f32(void *dst, msa_dtype dtype, const float *src, int64_t n);
void msa__generic_mxfp8_to_bf16(uint16_t *dst, const uint8_t *src, const uint8_t *scales,
                                int64_t n);
void msa__generic_unpack_columns(void *dst, msa_dtype dtype, int64_t ld, const float *c,
                                 int64_t ldc, int64_t n_columns, int64_t n, int32_t accumulate);

#endif
