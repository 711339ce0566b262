/* Memory through a context's allocator. */
#ifndef MSA_BASE_ALLOC_H
#define MSA_BASE_ALLOC_H

#include "base/shared.h"
#include "msa/context.h"

/* The C library's aligned allocation. */
MSA__SHARED extern const msa_allocator msa__default_allocator;

/* The allocator a context was created with. */
MSA__SHARED const msa_allocator *msa__context_allocator(const msa_context *ctx);

#endif
