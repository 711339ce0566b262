/* Preparing training data: a tokenizer learned from text, and text turned into token shards. */
#ifndef MSA_DATA_H
#define MSA_DATA_H

#include "msa/model.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Which added tokens a new tokenizer gets beside the learned ones. */
#define MSA_ADDED_CHAT 0 /* the 7 that documents and chat prompts need */
#define MSA_ADDED_M3   1 /* all 61 of MiniMax-M3, in its order */

/* Learn a byte-level BPE tokenizer with M3's pre-tokenizer and write tokenizer.json and
 * tokenizer_config.json. The same text gives the same files everywhere.
 *
 * dir         folder to write, made when missing
 * text        a file, or a folder whose .txt files are read
 * vocab_size  tokens in all: 256 bytes, learned ones, added ones
 * added       MSA_ADDED_…
 * one_digit   1: every digit is a token of its own, as small models copy numbers most easily; 0:
 * groups of up to three merge like other text progress    first in bytes of text, then in tokens;
 * may be NULL Errors      MSA_EINVAL vocab_size out of range, or more than the text gives;
 * MSA_EFORMAT a file that is not UTF-8; MSA_EIO; MSA_ENOMEM
 */
MSA_API MSA_CHECK_RESULT msa_status msa_tokenizer_train(const char *dir, const char *text,
                                                        int32_t vocab_size, int32_t added,
                                                        int32_t one_digit, msa_progress_fn progress,
                                                        void *user);

typedef struct msa_shards_info {
    uint32_t struct_size;
    uint32_t flags;
    int64_t n_shards, n_documents, n_tokens; /* tokens: the end of each document included */
    int64_t text_bytes;
} msa_shards_info;
MSA_ARGS_INIT(msa_shards_info)

/* Tokenize text into a folder of shards (docs/data.md), which training reads as they are. Shards
 * that an earlier call completed are kept.
 *
 * dir       folder to write, made when missing; it may hold no shards of other text
 * model     folder with tokenizer.json and tokenizer_config.json, whose eos_token ends a document
 * text      a file, or a folder whose .txt files are one document each
 * progress  in bytes of text; may be NULL
 * info      filled; may be NULL
 * Errors    MSA_EFORMAT a file that is not UTF-8, or no text at all; MSA_EIO; MSA_ENOMEM
 */
MSA_API MSA_CHECK_RESULT msa_status msa_shards_make(const char *dir, const char *model,
                                                    const char *text, msa_progress_fn progress,
                                                    void *user, msa_shards_info *info);

#ifdef __cplusplus
}
#endif
#endif
