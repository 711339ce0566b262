/* Writing tokenizer.json and tokenizer_config.json of a byte-level BPE tokenizer.
 *
 * Pre-tokenizer pattern and added tokens are M3's, so chat prompts and parsers work with it.
 */
#ifndef MSA_MODEL_TOKENIZER_WRITER_H
#define MSA_MODEL_TOKENIZER_WRITER_H

#include "model/buffers.h"

/* How M3 cuts text into pieces: words with the character before them, up to three digits, runs of
 * other characters, white space. */
extern const char msa__m3_pattern[];

typedef struct msa__token_bytes {
    const char *bytes;
    uint32_t n;
} msa__token_bytes;

typedef struct msa__token_pair {
    int32_t left, right;
} msa__token_pair;

typedef enum msa__added {
    MSA__ADDED_CHAT, /* padding, begin and end of turns, the marks of reasoning and tools */
    MSA__ADDED_M3    /* all 61 */
} msa__added;

int32_t msa__n_added(msa__added added);

typedef struct msa__tokenizer_parts {
    const msa__token_bytes *tokens; /* [n_tokens] by id; the 256 bytes and what merges make */
    const msa__token_pair *merges;  /* [n_merges] by rank */
    int32_t n_tokens, n_merges;
    msa__added added; /* their ids follow, from n_tokens on, in M3's order */
} msa__tokenizer_parts;

void msa__write_tokenizer(msa__text *text, const msa__tokenizer_parts *parts);
void msa__write_tokenizer_config(msa__text *text);

#endif
