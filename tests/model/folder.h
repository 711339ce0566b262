/* A temporary model folder. */
#ifndef MSA_TESTS_FOLDER_H
#define MSA_TESTS_FOLDER_H

#include <stddef.h>

typedef struct folder {
    char dir[64];
} folder;

folder folder_create(void);
void folder_remove(const folder *f); /* with its files */

/* dir/name, in a static buffer of the last call. */
const char *folder_path(const folder *f, const char *name);
void folder_write(const folder *f, const char *name, const void *bytes, size_t n);
void folder_copy(const folder *f, const char *from_dir, const char *name);
int folder_count(const folder *f); /* files in it */

/* Folder of a committed golden model, or of one that only the shared goldens have (NULL: not
 * there). */
const char *golden_model_dir(const char *name);

/* Whole file, NUL-terminated beyond *n, to be freed. */
char *read_whole_file(const char *path, size_t *n);

/* The committed test data file, NUL-terminated, to be freed. */
char *read_test_data(const char *name);

#endif
