/* A hash table from byte strings to indices that stays fast on hostile keys.
 *
 * Open addressing, sized once, never fuller than half. Its hash is seeded by the table's own
 * address, and a key that needs an absurd number of probes is refused, so no file can make it slow.
 */
#ifndef MSA_MODEL_NAMES_H
#define MSA_MODEL_NAMES_H

#include "msa/context.h"

typedef struct msa__name_slot {
    const char *name; /* NULL: free slot; borrowed */
    uint32_t bytes;
    int32_t index;
} msa__name_slot;

typedef struct msa__names {
    msa_allocator allocator;
    msa__name_slot *slots;
    size_t n_slots; /* a power of two */
    uint64_t seed;
} msa__names;

/* Room for n_names. MSA_ENOMEM */
msa_status msa__names_create(msa__names *names, const msa_allocator *allocator, size_t n_names);
void msa__names_destroy(msa__names *names); /* also of a zeroed struct */

/* Add a name; *existing is -1, or the index of an equal name, which then stays.
 * MSA_EFORMAT when it collides with too many others. */
msa_status msa__names_add(msa__names *names, const char *name, size_t bytes, int32_t index,
                          int32_t *existing);

/* Index of a name, -1 when absent. */
int32_t msa__names_find(const msa__names *names, const char *name, size_t bytes);

#endif
