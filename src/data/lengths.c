/* See lengths.h. */
#include "data/lengths.h"

#include "base/error.h"
#include "model/checksum.h"

#include <stdlib.h>
#include <string.h>

msa_status msa__lengths_read(msa__lengths *lengths, const msa__json *list, uint64_t *fingerprint)
{
    MSA_TRY(msa__json_type_is(list, MSA__JSON_ARRAY));
    if (list->n_children == 0) {
        return msa__json_fail(list, MSA_EFORMAT, "must hold at least one length");
    }
    lengths->of = calloc((size_t)list->n_children, sizeof(*lengths->of));
    if (!lengths->of) return MSA_FAIL(MSA_ENOMEM, "dataset: no memory for lengths");
    MSA__JSON_EACH(item, list)
    {
        int64_t *length = &lengths->of[lengths->n++];
        MSA_TRY(msa__json_int64(item, 2, 1 << MSA__SAMPLE_BITS, length));
        *fingerprint = msa__checksum(*fingerprint, length, sizeof(*length));
    }
    return MSA_OK;
}

void msa__lengths_free(msa__lengths *lengths)
{
    free(lengths->of);
    memset(lengths, 0, sizeof(*lengths));
}

int64_t msa__lengths_draw(const msa__lengths *lengths, uint32_t word, int64_t room)
{
    int32_t n_fit = 0;
    for (int32_t i = 0; i < lengths->n; i++) n_fit += lengths->of[i] <= room;
    if (n_fit == 0) return 0;
    int32_t which = (int32_t)(word % (uint32_t)n_fit);
    for (int32_t i = 0;; i++) {
        if (lengths->of[i] <= room && which-- == 0) return lengths->of[i];
    }
}
