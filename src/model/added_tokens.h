/* Finding added tokens in a text: the leftmost one, of those that start there the longest. */
#ifndef MSA_MODEL_ADDED_TOKENS_H
#define MSA_MODEL_ADDED_TOKENS_H

#include "msa/model.h"

#define MSA__MAX_ADDED_BYTES 512 /* of one token: bounds the work per byte of text */

typedef struct msa__added_token {
    const char *text; /* borrowed; never empty */
    size_t bytes;
    int32_t id;
    uint8_t single_word; /* no match inside a word */
    uint8_t lstrip;      /* takes the white space before it */
    uint8_t rstrip;      /* takes the white space behind it */
} msa__added_token;

typedef struct msa__added_set {
    msa__added_token *tokens; /* owned: msa_free; sorted by bytes once msa__added_sort ran */
    int32_t n;
    int32_t first[257]; /* tokens that start with byte b: first[b] .. first[b + 1] */
} msa__added_set;

void msa__added_sort(msa__added_set *set);

/* The next token at or after *from: plain text goes on until *begin and again from *end. NULL: no
 * more tokens. The caller sets *from and *end to 0 before the first call. */
const msa__added_token *msa__added_next(const msa__added_set *set, const char *text, size_t n,
                                        size_t *from, size_t *begin, size_t *end);

#endif
