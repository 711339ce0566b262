/* A byte-level BPE tokenizer as read from tokenizer.json. */
#ifndef MSA_MODEL_TOKENIZER_H
#define MSA_MODEL_TOKENIZER_H

#include "model/added_tokens.h"
#include "model/bpe.h"
#include "model/json.h"
#include "model/pattern.h"

#define MSA__MAX_TOKEN_ID  (1 << 21)
#define MSA__MAX_PRE_STEPS 16

typedef struct msa__token {
    const char *spelling; /* as in the file; NULL: no token has this id */
    const char *bytes;    /* what it decodes to */
    uint32_t n;           /* bytes of that */
    int32_t added;        /* listed in added_tokens */
} msa__token;

/* One pre-tokenizer: a space in front of the piece if it has none, then a cut into smaller pieces.
 */
typedef struct msa__pre_step {
    int32_t prefix_space;
    msa__pattern *pattern; /* NULL: no cut */
} msa__pre_step;

struct msa_tokenizer {
    int32_t n_ids;
    msa__token *tokens;   /* [n_ids] */
    msa__names spellings; /* to ids */
    char *storage;        /* all spellings and bytes */
    msa__bpe bpe;
    msa__added_set raw;        /* added tokens looked for in the text as it is */
    msa__added_set normalized; /* those looked for in the normalized text */
    int32_t nfc;
    msa__pre_step steps[MSA__MAX_PRE_STEPS];
    int32_t n_steps;
    int32_t byte_level; /* the last step was a ByteLevel */
};

/* A tokenizer from a document laid out as tokenizer.json. *out is owned: msa_tokenizer_close. */
MSA_CHECK_RESULT msa_status msa__tokenizer_create(msa_tokenizer **out, const msa__json *root);

/* Fill a zeroed tokenizer; on failure the caller closes it. */
MSA_CHECK_RESULT msa_status msa__tokenizer_fill(msa_tokenizer *tokenizer, const msa__json *root);

/* The part of it that is tables: vocab and merges of the model, added_tokens (NULL: none). */
MSA_CHECK_RESULT msa_status msa__tokenizer_read_model(msa_tokenizer *tokenizer,
                                                      const msa__json *model,
                                                      const msa__json *added);

#endif
