/* Which of the x86 tables this machine can run. Compiled without ISA flags: it runs before the
 * answer is known. */
#ifndef MSA_CPU_X86_FEATURES_H
#define MSA_CPU_X86_FEATURES_H

#include <stdint.h>

int32_t msa__avx2_usable(void);
int32_t msa__avx512_usable(void);
int32_t msa__amx_usable(void); /* asks the system for the tile registers */

#endif
