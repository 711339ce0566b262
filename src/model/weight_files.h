/* The weight files of a model folder being written: one file, or shards with an index. */
#ifndef MSA_MODEL_WEIGHT_FILES_H
#define MSA_MODEL_WEIGHT_FILES_H

#include "msa/safetensors.h"

typedef struct msa__weight_files msa__weight_files;

/* Begin the files of an existing folder; nothing has its final name before it is whole.
 *
 * Ownership *out is owned: msa__weight_files_destroy, which removes an unfinished file
 */
MSA_CHECK_RESULT msa_status msa__weight_files_create(msa__weight_files **out, const char *dir);
void msa__weight_files_destroy(msa__weight_files *files); /* NULL is allowed */

/* Declare the next tensor; *index counts from 0. All are declared before the first is written.
 * Errors    MSA_EINVAL as msa_safetensors_writer_declare, when the shard is begun; MSA_ENOMEM */
MSA_CHECK_RESULT msa_status msa__weight_files_declare(msa__weight_files *files, const char *name,
                                                      msa_dtype dtype, int32_t n_dims,
                                                      const int64_t *shape, int64_t *index);

/* Bytes of all tensors declared. */
int64_t msa__weight_files_bytes(const msa__weight_files *files);

/* Write bytes of a tensor at an offset; tensors come in the order of their index. */
MSA_CHECK_RESULT msa_status msa__weight_files_write(msa__weight_files *files, int64_t index,
                                                    int64_t offset, const void *data, size_t bytes);

/* Complete the last file, and model.safetensors.index.json where there are several. */
MSA_CHECK_RESULT msa_status msa__weight_files_finish(msa__weight_files *files);

#endif
