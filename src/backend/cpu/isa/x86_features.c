/* See x86_features.h. */
#define _GNU_SOURCE
#include "backend/cpu/isa/x86_features.h"

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Linux: tile data is switched on per process, see arch_prctl(2). */
#define ARCH_REQ_XCOMP_PERM 0x1023
#define XFEATURE_XTILEDATA  18

int32_t msa__avx2_usable(void)
{
    unsigned eax, ebx, ecx, edx;
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return 0;
    return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_F16C);
}

int32_t msa__avx512_usable(void)
{
    return msa__avx2_usable() && __builtin_cpu_supports("avx512f") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bf16");
}

int32_t msa__amx_usable(void)
{
    unsigned eax, ebx, ecx, edx;
    if (!msa__avx512_usable() || !__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return 0;
    if (!(edx & (1u << 22)) || !(edx & (1u << 24))) return 0; /* AMX-BF16, AMX-TILE */
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
}
