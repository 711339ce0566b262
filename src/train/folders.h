/* The folders of a run's checkpoints: OUTPUT/step-N. */
#ifndef MSA_TRAIN_FOLDERS_H
#define MSA_TRAIN_FOLDERS_H

#include "msa/status.h"

#include <stdint.h>

#define MSA__PATH_BYTES 1024

/* Make a folder and those above it. MSA_EIO */
MSA_CHECK_RESULT msa_status msa__folder_make(const char *path);

/* Remove a folder with its files, if it is there. MSA_EIO */
MSA_CHECK_RESULT msa_status msa__folder_remove(const char *path);

/* Path of the checkpoint of a step. */
MSA_CHECK_RESULT msa_status msa__folder_of_step(char *path, const char *output, int64_t step);

/* Largest step below `below` that has a checkpoint, -1: none. Only whole checkpoints have such a
 * name. */
MSA_CHECK_RESULT msa_status msa__folder_newest(const char *output, int64_t below, int64_t *step);

/* Remove all checkpoints but the newest `kept`, and what interrupted writers left. */
MSA_CHECK_RESULT msa_status msa__folder_prune(const char *output, int64_t kept);

/* Copy a file between folders if the source has it. */
MSA_CHECK_RESULT msa_status msa__folder_copy(const char *from, const char *to, const char *name);

#endif
