/* Reading a caller's argument struct of any size, and checks shared by the operators. */
#ifndef MSA_BASE_ARGS_H
#define MSA_BASE_ARGS_H

#include "base/shared.h"
#include "msa/status.h"

#include <stddef.h>

/* Copy a caller's struct into ours: fields it does not have become zero; bytes beyond ours must be
 * zero. `args` must start with uint32_t struct_size, flags; flags must be 0. */
MSA__SHARED msa_status msa__args_copy(const char *op, void *ours, size_t our_size,
                                      const void *args);

#endif
