/* A list of files: one, or all those of a folder, by name. */
#ifndef MSA_DATA_FILE_LIST_H
#define MSA_DATA_FILE_LIST_H

#include "msa/context.h"

typedef struct msa__file_list {
    char **paths; /* [n], in the order of strcmp */
    int64_t n, capacity;
} msa__file_list;

/* Fill a zeroed list with a file, or with the files of a folder whose names end in `ending`, such
 * as ".txt"; folders inside it are left out.
 *
 * Ownership release with msa__file_list_free, also after a failure
 * Errors    MSA_EIO path and system error; MSA_EFORMAT a folder without such files; MSA_ENOMEM
 */
MSA_CHECK_RESULT msa_status msa__file_list_fill(msa__file_list *files, const char *path,
                                                const char *ending);
/* Append a copy of a path. MSA_ENOMEM */
MSA_CHECK_RESULT msa_status msa__file_list_add(msa__file_list *files, const char *path);
void msa__file_list_free(msa__file_list *files);

/* Bytes of files first..end-1 together; one that is gone counts none. */
int64_t msa__file_list_bytes(const msa__file_list *files, int64_t first, int64_t end);

/* The last message, with the file that it is about in front. Returns status. */
msa_status msa__in_file(const char *path, msa_status status);

#endif
