/* Text files become token shards, each text once: a shard that is already there is kept. */
#ifndef MSA_DATA_TOKENIZE_H
#define MSA_DATA_TOKENIZE_H

#include "data/file_list.h"
#include "data/vocabulary.h"

/* Tokenize files into dir, a shard for about 32 MiB of text. Every document ends with the
 * vocabulary's eos; an empty file is none. A shard's name holds its number and a checksum of the
 * text and the tokenizer; one of that name is complete and is not made again, so work that was cut
 * off goes on where it stopped.
 *
 * shards    the paths of all, in the order of the text; zeroed before, msa__file_list_free after
 * progress  in bytes of text; may be NULL
 * Errors    MSA_EIO; MSA_EFORMAT text that is not UTF-8, or none at all; MSA_ENOMEM
 */
MSA_CHECK_RESULT msa_status msa__tokenize(msa__file_list *shards, const char *dir,
                                          const msa__vocabulary *vocabulary,
                                          const msa__file_list *files, msa_progress_fn progress,
                                          void *user);

#endif
