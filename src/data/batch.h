/* A training batch: sequences packed one behind the other, with the token each position predicts.
 */
#ifndef MSA_DATA_BATCH_H
#define MSA_DATA_BATCH_H

#include "msa/model.h"

/* Arrays of the caller; T is what was asked for, and all T tokens are filled. */
typedef struct msa__batch {
    int32_t *tokens;     /* [T] */
    int32_t *targets;    /* [T] the next token of the document; -1: no loss here */
    int32_t *positions;  /* [T] counted from 0 in every sequence */
    int32_t *cu_seqlens; /* [B + 1] used, room for T + 1 */
    int32_t n_tokens;    /* filled so far: T in a finished batch */
    int32_t n_sequences; /* B */
    int32_t n_targets;   /* positions with a loss */
} msa__batch;

void msa__batch_clear(msa__batch *batch);

/* Append a sequence. The target of a position is the token behind it, the last one's is `next` (-1:
 * the document ends here); positions before first_target have no loss. */
void msa__batch_add(msa__batch *batch, const int32_t *tokens, int64_t n, int32_t next,
                    int64_t first_target);

/* Append a sequence of n > 0 tokens without loss, which fills what documents left over. */
void msa__batch_pad(msa__batch *batch, int32_t token, int64_t n);

#endif
