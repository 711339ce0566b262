/* Pairs of neighbouring tokens: how often each occurs and in which words, most frequent first.
 *
 * A hash table holds the counts, a heap the order. Counts that fall are not moved in the heap: an
 * entry whose count is no longer true is put back with the true one when it comes to the top.
 */
#ifndef MSA_DATA_PAIR_TABLE_H
#define MSA_DATA_PAIR_TABLE_H

#include "msa/status.h"

#include <stddef.h>

typedef struct msa__pair {
    uint64_t key; /* left << 32 | right; UINT64_MAX: free slot */
    int64_t count;
    int32_t *words; /* [n_words] where it occurs or did; a word may come twice */
    int32_t n_words, capacity;
    int32_t stamp; /* of the last round that queued it */
} msa__pair;

typedef struct msa__pair_rank {
    int64_t count;
    uint64_t key;
} msa__pair_rank;

typedef struct msa__pair_table {
    msa__pair *slots;
    size_t n_slots, n_used;
    msa__pair_rank *heap;
    size_t n_heap, heap_capacity;
    uint64_t *queued; /* pairs that grew in this round */
    size_t n_queued, queued_capacity;
    int32_t round;
} msa__pair_table;

static inline uint64_t msa__pair_key(int32_t left, int32_t right)
{
    return (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
}

/* Fill a zeroed struct. Release with free, also after a failure. MSA_ENOMEM */
MSA_CHECK_RESULT msa_status msa__pairs_create(msa__pair_table *table);
void msa__pairs_free(msa__pair_table *table); /* also of a zeroed struct */

/* Change the count of a pair; one that grows also occurs in `word` from now on, and waits to enter
 * the heap. MSA_ENOMEM */
MSA_CHECK_RESULT msa_status msa__pairs_change(msa__pair_table *table, uint64_t key, int64_t change,
                                              int32_t word);

/* The end of a round: pairs that grew enter the heap with the counts they have now. MSA_ENOMEM */
MSA_CHECK_RESULT msa_status msa__pairs_settle(msa__pair_table *table);

/* Take out the pair of the highest count, of equals the lowest key. Its words go to the caller
 * (free them) and its count becomes 0. Returns 0 when no pair occurs any more. */
int msa__pairs_take(msa__pair_table *table, msa__pair *out);

#endif
