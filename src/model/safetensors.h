/* Internals of the safetensors reader: allocator, and files in memory. */
#ifndef MSA_MODEL_SAFETENSORS_H
#define MSA_MODEL_SAFETENSORS_H

#include "msa/context.h"
#include "msa/safetensors.h"

/* Header limit of the format. */
#define MSA__SAFETENSORS_MAX_HEADER 100000000u

/* msa_safetensors_open with the caller's allocator. */
MSA_CHECK_RESULT msa_status msa__safetensors_open(msa_safetensors **out,
                                                  const msa_allocator *allocator, const char *path);

/* The same for bytes in memory, borrowed until close; name is for messages. */
MSA_CHECK_RESULT msa_status msa__safetensors_from_memory(msa_safetensors **out,
                                                         const msa_allocator *allocator,
                                                         const char *name, const void *data,
                                                         size_t bytes);

const char *msa__safetensors_path(const msa_safetensors *file);
/* Bytes of tensor data in the file. */
size_t msa__safetensors_data_bytes(const msa_safetensors *file);

#endif
