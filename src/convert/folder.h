/* The folder that a conversion writes, and the files that it takes along unchanged. */
#ifndef MSA_CONVERT_FOLDER_H
#define MSA_CONVERT_FOLDER_H

#include "model/buffers.h"

/* Make a folder, or accept an empty one. what begins the messages: "convert".
 * Errors    MSA_EINVAL it holds something; MSA_EIO */
MSA_CHECK_RESULT msa_status msa__convert_make_folder(const char *what, const char *dir);

/* Copy tokenizer and generation settings, then write config.json: a folder that has one is whole.
 * Errors    MSA_EIO; MSA_EFORMAT a file beyond 256 MiB; MSA_ENOMEM */
MSA_CHECK_RESULT msa_status msa__convert_finish_folder(const char *source_dir, const char *dir,
                                                       const msa__text *config);

#endif
