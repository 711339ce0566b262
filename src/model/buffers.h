/* Growing buffers of bytes and of token ids.
 *
 * A failed addition is remembered, later ones do nothing, and finishing reports it: writers need
 * not check every piece.
 */
#ifndef MSA_MODEL_BUFFERS_H
#define MSA_MODEL_BUFFERS_H

#include "msa/model.h"

typedef struct msa__text {
    char *bytes;
    size_t n, capacity;
    msa_status status;
} msa__text;

void msa__text_add(msa__text *text, const char *bytes, size_t n);
void msa__text_puts(msa__text *text, const char *string);
void msa__text_free(msa__text *text);

/* Hand over the bytes, NUL-terminated, to be released with msa_free; or free them and fail. */
MSA_CHECK_RESULT msa_status msa__text_finish(msa__text *text, char **bytes, size_t *n);

typedef struct msa__ids {
    int32_t *ids;
    size_t n, capacity;
} msa__ids;

MSA_CHECK_RESULT msa_status msa__ids_add(msa__ids *ids, const int32_t *more, size_t n);

#endif
