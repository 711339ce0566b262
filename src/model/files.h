/* Paths, whole small files, and read-only maps of large ones. */
#ifndef MSA_MODEL_FILES_H
#define MSA_MODEL_FILES_H

#include "msa/context.h"

/* dir + "/" + name; MSA_EINVAL when it does not fit. */
MSA_CHECK_RESULT msa_status msa__path_join(char *path, size_t path_bytes, const char *dir,
                                           const char *name);

int32_t msa__file_exists(const char *path); /* a regular file, or a link to one */

/* Read a regular file of at most max_bytes; *text is NUL-terminated beyond *bytes.
 *
 * Ownership *text is owned: allocator->free(user, text, bytes + 1)
 * Errors    MSA_EIO path and system error; MSA_EFORMAT larger than max_bytes; MSA_ENOMEM
 */
MSA_CHECK_RESULT msa_status msa__file_read(const char *path, size_t max_bytes,
                                           const msa_allocator *allocator, char **text,
                                           size_t *bytes);

/* Write a whole file: beside its name first, then renamed. MSA_EIO */
MSA_CHECK_RESULT msa_status msa__file_write(const char *path, const char *text, size_t bytes);

/* Map a regular file read-only; an empty file gives *data NULL. */
MSA_CHECK_RESULT msa_status msa__file_map(const char *path, const void **data, size_t *bytes);
void msa__file_unmap(const void *data, size_t bytes);

#endif
