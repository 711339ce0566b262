/* Memory through a context's allocator. */
#ifndef MSA_BASE_ALLOC_H
#define MSA_BASE_ALLOC_H

#include "msa/context.h"

/* The C library's aligned allocation. */
extern const msa_allocator msa__default_allocator;

#endif
