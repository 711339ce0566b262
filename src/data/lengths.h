/* The lengths that made documents have, drawn among those that fit. */
#ifndef MSA_DATA_LENGTHS_H
#define MSA_DATA_LENGTHS_H

#include "model/json.h"

#define MSA__SAMPLE_BITS 20 /* documents of a row: more than it has tokens */

typedef struct msa__lengths {
    int64_t *of; /* [n] */
    int32_t n;
} msa__lengths;

/* Read an array of 2..2^20 tokens into a zeroed struct; release with free, also after a failure.
 * *fingerprint goes on over them.
 * Errors    MSA_EFORMAT key, value and rule; MSA_ENOMEM */
MSA_CHECK_RESULT msa_status msa__lengths_read(msa__lengths *lengths, const msa__json *list,
                                              uint64_t *fingerprint);
void msa__lengths_free(msa__lengths *lengths); /* also of a zeroed struct */

/* One of those that fit, by a drawn word; 0: none fits. */
int64_t msa__lengths_draw(const msa__lengths *lengths, uint32_t word, int64_t room);

#endif
