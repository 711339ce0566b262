/* Reading a JSON object strictly: a table says which keys there are, what they hold and where that
 * goes. A key that is not in the table is an error: ignoring it would train something else. */
#ifndef MSA_TRAIN_KEYS_H
#define MSA_TRAIN_KEYS_H

#include "model/json.h"

typedef enum msa__key_kind {
    MSA__KEY_COUNT,  /* int64_t, low .. high */
    MSA__KEY_NUMBER, /* double, low .. high */
    MSA__KEY_FLAG,   /* int32_t, true 1, false 0 */
    MSA__KEY_WORD,   /* int32_t, index in the list "cosine|wsd" */
    MSA__KEY_TEXT,   /* const char *, not empty */
    MSA__KEY_OBJECT, /* const msa__json *, for the caller to read */
    MSA__KEY_LIST,   /* the same, an array */
    MSA__KEY_TABLE   /* an object with a table of its own, into the same struct */
} msa__key_kind;

typedef struct msa__key {
    const char *name; /* NULL: end of the table */
    msa__key_kind kind;
    size_t offset;
    double low, high;
    const char *words;
    const struct msa__key *table;
} msa__key;

/* Read an object; members that are absent leave the struct as it is.
 * Errors    MSA_EFORMAT place, value and rule; an unknown key with the list of known ones */
MSA_CHECK_RESULT msa_status msa__keys_read(const msa__json *object, const msa__key *table,
                                           void *out);

#endif
