/* Safetensors files: named arrays, read by mapping and written in any order.
 *
 *     u64 header length (little endian) | header: JSON name -> dtype, shape, data_offsets | data
 */
#ifndef MSA_SAFETENSORS_H
#define MSA_SAFETENSORS_H

#include "msa/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct msa_safetensors msa_safetensors;

/* Map a file and check its whole header: every range inside the file and as long as dtype x shape,
 * no overlap, no gap, no name twice. The data is read when it is used.
 *
 * Ownership *out is owned: msa_safetensors_close
 * Errors    MSA_EIO; MSA_EFORMAT file, tensor, value and rule; MSA_ENOMEM
 */
MSA_API MSA_CHECK_RESULT msa_status msa_safetensors_open(msa_safetensors **out, const char *path);
MSA_API void msa_safetensors_close(msa_safetensors *file); /* NULL is allowed */

MSA_API int64_t msa_safetensors_count(const msa_safetensors *file);
/* Name of tensor i in the order of the data; NULL outside 0..count-1. Borrowed from the file. */
MSA_API const char *msa_safetensors_name(const msa_safetensors *file, int64_t i);
/* Index of a name, -1 when absent. */
MSA_API int64_t msa_safetensors_find(const msa_safetensors *file, const char *name);

/* View of tensor i, borrowed until the file is closed. F8_E8M0 reads as u8. A scalar has no
 * dimensions; a tensor without elements has data NULL.
 *
 * Errors    MSA_EINVAL i; MSA_EUNSUPPORTED a dtype msa does not have, more than MSA_MAX_DIMS
 *           dimensions, data not aligned to its element
 */
MSA_API MSA_CHECK_RESULT msa_status msa_safetensors_get(const msa_safetensors *file, int64_t i,
                                                        msa_tensor *tensor);

typedef struct msa_safetensors_writer msa_safetensors_writer;

/* Write a file: declare every tensor, then write their bytes in any order and pieces, then finish.
 * Until it is finished the file has a temporary name beside path.
 *
 * Ownership *out is owned: msa_safetensors_writer_destroy, which removes an unfinished file
 */
MSA_API MSA_CHECK_RESULT msa_status msa_safetensors_writer_create(msa_safetensors_writer **out,
                                                                  const char *path);
MSA_API void msa_safetensors_writer_destroy(msa_safetensors_writer *writer); /* NULL is allowed */

/* Declare the next tensor; *index counts from 0. MSA_EINVAL after the first write, for a name that
 * is empty or taken, a negative extent, or more than MSA_MAX_DIMS dimensions. */
MSA_API MSA_CHECK_RESULT msa_status msa_safetensors_writer_declare(msa_safetensors_writer *writer,
                                                                   const char *name,
                                                                   msa_dtype dtype, int32_t n_dims,
                                                                   const int64_t *shape,
                                                                   int64_t *index);

/* Write bytes of one tensor at an offset in bytes. Every byte must be written exactly once.
 * MSA_EINVAL outside the tensor; also when a name was declared twice. */
MSA_API MSA_CHECK_RESULT msa_status msa_safetensors_writer_write(msa_safetensors_writer *writer,
                                                                 int64_t index, int64_t offset,
                                                                 const void *data, size_t bytes);

/* Complete the file and give it its name. MSA_EINVAL names a tensor that is not wholly written. */
MSA_API MSA_CHECK_RESULT msa_status msa_safetensors_writer_finish(msa_safetensors_writer *writer);

#ifdef __cplusplus
}
#endif
#endif
