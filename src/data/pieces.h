/* The different pieces of a text and how often each occurs: all that BPE training looks at. */
#ifndef MSA_DATA_PIECES_H
#define MSA_DATA_PIECES_H

#include "model/names.h"
#include "model/pattern.h"

typedef struct msa__piece {
    const char *bytes;
    uint32_t n;
    int64_t count;
} msa__piece;

typedef struct msa__pieces {
    int32_t no_digits; /* 1: numbers do not count, so no digits merge */
    msa__piece *items; /* [n] in the order of their first occurrence */
    int64_t n, capacity;
    msa__names index;          /* bytes to item */
    struct msa__block *blocks; /* the bytes */
} msa__pieces;

/* Cut a text with the pattern and count its pieces; fills a zeroed struct, adds to a filled one.
 * Errors    MSA_EFORMAT byte offset of invalid UTF-8; MSA_EUNSUPPORTED as msa__pattern_next;
 *           MSA_ENOMEM, also for 2^31 different pieces */
MSA_CHECK_RESULT msa_status msa__pieces_add(msa__pieces *pieces, const msa__pattern *pattern,
                                            msa__matcher *matcher, const char *text, size_t n);
void msa__pieces_free(msa__pieces *pieces); /* also of a zeroed struct */

#endif
