/* The list of instruction sets compiled in, best first. */
#include "backend/cpu/isa/generic.h"

#include <stddef.h>

#if defined(__x86_64__)
extern const msa__cpu_kernels msa__kernels_amx, msa__kernels_avx512, msa__kernels_avx2;
#elif defined(__aarch64__)
extern const msa__cpu_kernels msa__kernels_neon;
#endif

const msa__cpu_kernels *const msa__cpu_kernel_tables[] = {
#if defined(__x86_64__)
    &msa__kernels_amx,     &msa__kernels_avx512,
    &msa__kernels_avx2,
#elif defined(__aarch64__)
    &msa__kernels_neon,
#endif
    &msa__kernels_generic, NULL,
};
