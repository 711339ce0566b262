/* Pairs by count; see pair_table.h. */
#include "data/pair_table.h"

#include "base/error.h"

#include <stdlib.h>
#include <string.h>

static msa_status no_memory(void)
{
    return MSA_FAIL(MSA_ENOMEM, "train_tokenizer: no memory for the pairs of the text");
}

/* Room for one more item; NULL when there is none. */
static void *grow(void *items, size_t n, size_t *capacity, size_t item_bytes)
{
    if (n < *capacity) return items;
    size_t fresh = *capacity ? 2 * *capacity : 64;
    void *grown = realloc(items, fresh * item_bytes);
    if (grown) *capacity = fresh;
    return grown;
}

/* ---- table -------------------------------------------------------------------------------- */

static msa_status create_slots(msa__pair_table *table, size_t n_slots)
{
    table->slots = malloc(n_slots * sizeof(*table->slots));
    if (!table->slots) return no_memory();
    for (size_t i = 0; i < n_slots; i++) table->slots[i] = (msa__pair){.key = UINT64_MAX};
    table->n_slots = n_slots;
    return MSA_OK;
}

msa_status msa__pairs_create(msa__pair_table *table)
{
    table->round = 1;
    return create_slots(table, 1 << 12);
}

void msa__pairs_free(msa__pair_table *table)
{
    for (size_t i = 0; i < table->n_slots; i++) free(table->slots[i].words);
    free(table->slots);
    free(table->heap);
    free(table->queued);
    memset(table, 0, sizeof(*table));
}

/* The slot of a pair, or the free one where it would be. */
static msa__pair *find_slot(const msa__pair_table *table, uint64_t key)
{
    uint64_t hash = key * 0x9E3779B97F4A7C15u;
    size_t at = (hash ^ hash >> 32) & (table->n_slots - 1);
    while (table->slots[at].key != key && table->slots[at].key != UINT64_MAX) {
        at = (at + 1) & (table->n_slots - 1);
    }
    return &table->slots[at];
}

static msa_status grow_slots(msa__pair_table *table)
{
    msa__pair *old = table->slots;
    size_t n_old = table->n_slots;
    msa_status status = create_slots(table, 2 * n_old);
    if (status != MSA_OK) {
        table->slots = old;
        return status;
    }
    for (size_t i = 0; i < n_old; i++) {
        if (old[i].key != UINT64_MAX) *find_slot(table, old[i].key) = old[i];
    }
    free(old);
    return MSA_OK;
}

static msa_status add_word(msa__pair *pair, int32_t word)
{
    if (pair->n_words > 0 && pair->words[pair->n_words - 1] == word) return MSA_OK;
    if (pair->n_words == pair->capacity) {
        int32_t capacity = pair->capacity ? 2 * pair->capacity : 2;
        int32_t *grown = realloc(pair->words, (size_t)capacity * sizeof(*grown));
        if (!grown) return no_memory();
        pair->words = grown;
        pair->capacity = capacity;
    }
    pair->words[pair->n_words++] = word;
    return MSA_OK;
}

msa_status msa__pairs_change(msa__pair_table *table, uint64_t key, int64_t change, int32_t word)
{
    msa__pair *pair = find_slot(table, key);
    if (pair->key == UINT64_MAX) {
        if (2 * (table->n_used + 1) > table->n_slots) {
            MSA_TRY(grow_slots(table));
            pair = find_slot(table, key);
        }
        pair->key = key;
        table->n_used++;
    }
    pair->count += change;
    if (change < 0) return MSA_OK;
    MSA_TRY(add_word(pair, word));
    if (pair->stamp == table->round) return MSA_OK;
    uint64_t *queued =
        grow(table->queued, table->n_queued, &table->queued_capacity, sizeof(*queued));
    if (!queued) return no_memory();
    table->queued = queued;
    queued[table->n_queued++] = key;
    pair->stamp = table->round;
    return MSA_OK;
}

/* ---- heap --------------------------------------------------------------------------------- */

static int comes_first(msa__pair_rank a, msa__pair_rank b)
{
    return a.count != b.count ? a.count > b.count : a.key < b.key;
}

static void sift_down(msa__pair_table *table, msa__pair_rank rank)
{
    size_t at = 0;
    for (size_t child; (child = 2 * at + 1) < table->n_heap; at = child) {
        msa__pair_rank *heap = table->heap;
        if (child + 1 < table->n_heap && comes_first(heap[child + 1], heap[child])) child++;
        if (!comes_first(heap[child], rank)) break;
        heap[at] = heap[child];
    }
    table->heap[at] = rank;
}

static msa_status push(msa__pair_table *table, msa__pair_rank rank)
{
    msa__pair_rank *heap = grow(table->heap, table->n_heap, &table->heap_capacity, sizeof(*heap));
    if (!heap) return no_memory();
    table->heap = heap;
    size_t at = table->n_heap++;
    for (; at > 0 && comes_first(rank, heap[(at - 1) / 2]); at = (at - 1) / 2) {
        heap[at] = heap[(at - 1) / 2];
    }
    heap[at] = rank;
    return MSA_OK;
}

msa_status msa__pairs_settle(msa__pair_table *table)
{
    for (size_t i = 0; i < table->n_queued; i++) {
        const msa__pair *pair = find_slot(table, table->queued[i]);
        if (pair->count <= 0) continue;
        MSA_TRY(push(table, (msa__pair_rank){pair->count, pair->key}));
    }
    table->n_queued = 0;
    table->round++;
    return MSA_OK;
}

int msa__pairs_take(msa__pair_table *table, msa__pair *out)
{
    while (table->n_heap > 0) {
        msa__pair_rank top = table->heap[0];
        msa__pair *pair = find_slot(table, top.key);
        if (pair->count > 0 && pair->count != top.count) {
            sift_down(table, (msa__pair_rank){pair->count, top.key});
            continue;
        }
        msa__pair_rank last = table->heap[--table->n_heap];
        if (table->n_heap > 0) sift_down(table, last);
        if (pair->count <= 0) continue;
        *out = *pair;
        pair->words = NULL;
        pair->n_words = pair->capacity = 0;
        pair->count = 0;
        return 1;
    }
    return 0;
}
