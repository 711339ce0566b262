/* The list of instruction sets compiled in, best first. */
#include "backend/cpu/isa/generic.h"

#include <stddef.h>

const msa__cpu_kernels *const msa__cpu_kernel_tables[] = {&msa__kernels_generic, NULL};
