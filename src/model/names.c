/* Names to indices; see names.h. */
#include "model/names.h"

#include "base/error.h"
#include "base/overflow.h"

#include <string.h>

/* At half load a random hash needs more than a few dozen probes practically never. */
#define MAX_PROBES 256

static uint64_t mix(uint64_t h)
{
    h ^= h >> 32;
    h *= 0x9E3779B97F4A7C15u;
    return h ^ (h >> 29);
}

static uint64_t hash_name(uint64_t seed, const char *name, size_t bytes)
{
    uint64_t h = seed ^ bytes;
    for (; bytes >= 8; bytes -= 8, name += 8) {
        uint64_t word;
        memcpy(&word, name, 8);
        h = mix(h ^ word);
    }
    uint64_t tail = 0;
    memcpy(&tail, name, bytes);
    return mix(mix(h ^ tail) + seed);
}

msa_status msa__names_create(msa__names *names, const msa_allocator *allocator, size_t n_names)
{
    memset(names, 0, sizeof(*names));
    names->allocator = *allocator;
    size_t n_slots = 16, bytes;
    while (n_slots / 2 < n_names) {
        if (msa__mul_overflow(n_slots, 2, &n_slots)) break;
    }
    if (msa__mul_overflow(n_slots, sizeof(*names->slots), &bytes) || n_slots < n_names) {
        return MSA_FAIL(MSA_ENOMEM, "names: no memory for %zu names", n_names);
    }
    names->slots = allocator->alloc(allocator->user, bytes, 64);
    if (!names->slots) return MSA_FAIL(MSA_ENOMEM, "names: no memory for %zu names", n_names);
    memset(names->slots, 0, bytes);
    names->n_slots = n_slots;
    names->seed = mix((uint64_t)(uintptr_t)names->slots) | 1;
    return MSA_OK;
}

void msa__names_destroy(msa__names *names)
{
    if (!names->slots) return;
    names->allocator.free(names->allocator.user, names->slots,
                          names->n_slots * sizeof(*names->slots));
    names->slots = NULL;
}

/* The slot that holds the name or could take it; NULL after too many probes. */
static msa__name_slot *find_slot(const msa__names *names, const char *name, size_t bytes)
{
    size_t at = hash_name(names->seed, name, bytes) & (names->n_slots - 1);
    for (int probe = 0; probe < MAX_PROBES; probe++) {
        msa__name_slot *slot = &names->slots[at];
        if (!slot->name) return slot;
        if (slot->bytes == bytes && !memcmp(slot->name, name, bytes)) return slot;
        at = (at + 1) & (names->n_slots - 1);
    }
    return NULL;
}

msa_status msa__names_add(msa__names *names, const char *name, size_t bytes, int32_t index,
                          int32_t *existing)
{
    *existing = -1;
    msa__name_slot *slot = find_slot(names, name, bytes);
    if (!slot || bytes > UINT32_MAX) {
        return MSA_FAIL(MSA_EFORMAT, "names: %.64s, collides with too many others", name);
    }
    if (slot->name) {
        *existing = slot->index;
        return MSA_OK;
    }
    slot->name = name;
    slot->bytes = (uint32_t)bytes;
    slot->index = index;
    return MSA_OK;
}

int32_t msa__names_find(const msa__names *names, const char *name, size_t bytes)
{
    const msa__name_slot *slot = find_slot(names, name, bytes);
    return slot && slot->name ? slot->index : -1;
}
