/* Counting pieces; see pieces.h. */
#include "data/pieces.h"

#include "base/alloc.h"
#include "base/error.h"
#include "model/utf8.h"

#include <stdlib.h>
#include <string.h>

#define BLOCK_BYTES ((size_t)1 << 20)

/* Bytes of pieces lie in blocks that never move: the index borrows them. */
struct msa__block {
    struct msa__block *next;
    size_t used, capacity;
    char bytes[];
};

static msa_status no_memory(const msa__pieces *pieces)
{
    return MSA_FAIL(MSA_ENOMEM, "train_tokenizer: no memory for more than %lld pieces",
                    (long long)pieces->n);
}

static char *keep_bytes(msa__pieces *pieces, const char *bytes, size_t n)
{
    struct msa__block *block = pieces->blocks;
    if (!block || block->capacity - block->used < n) {
        size_t capacity = n > BLOCK_BYTES ? n : BLOCK_BYTES;
        block = malloc(sizeof(*block) + capacity);
        if (!block) return NULL;
        block->next = pieces->blocks;
        block->used = 0;
        block->capacity = capacity;
        pieces->blocks = block;
    }
    char *copy = memcpy(block->bytes + block->used, bytes, n);
    block->used += n;
    return copy;
}

/* Twice the room, and a new index of that size. */
static msa_status grow(msa__pieces *pieces)
{
    int64_t capacity = pieces->capacity ? 2 * pieces->capacity : 1024;
    if (capacity > INT32_MAX) return no_memory(pieces);
    msa__piece *items = realloc(pieces->items, (size_t)capacity * sizeof(*items));
    if (!items) return no_memory(pieces);
    pieces->items = items;
    pieces->capacity = capacity;
    msa__names_destroy(&pieces->index);
    MSA_TRY(msa__names_create(&pieces->index, &msa__default_allocator, (size_t)capacity));
    for (int64_t i = 0; i < pieces->n; i++) {
        int32_t existing;
        MSA_TRY(msa__names_add(&pieces->index, items[i].bytes, items[i].n, (int32_t)i, &existing));
    }
    return MSA_OK;
}

static msa_status count_piece(msa__pieces *pieces, const char *bytes, size_t n)
{
    if (n == 0) return MSA_OK;
    /* In M3's pattern a piece that begins with a digit is a number, and no other holds digits. */
    if (pieces->no_digits && bytes[0] >= '0' && bytes[0] <= '9') return MSA_OK;
    int32_t found = pieces->n ? msa__names_find(&pieces->index, bytes, n) : -1;
    if (found >= 0) {
        pieces->items[found].count++;
        return MSA_OK;
    }
    if (pieces->n == pieces->capacity) MSA_TRY(grow(pieces));
    const char *copy = keep_bytes(pieces, bytes, n);
    if (!copy) return no_memory(pieces);
    MSA_TRY(msa__names_add(&pieces->index, copy, n, (int32_t)pieces->n, &found));
    pieces->items[pieces->n++] = (msa__piece){copy, (uint32_t)n, 1};
    return MSA_OK;
}

msa_status msa__pieces_add(msa__pieces *pieces, const msa__pattern *pattern, msa__matcher *matcher,
                           const char *text, size_t n)
{
    size_t invalid = msa__utf8_check(text, n);
    if (invalid < n || n > INT32_MAX) {
        return MSA_FAIL(MSA_EFORMAT, "train_tokenizer: byte %zu, must be valid UTF-8 below 2 GiB",
                        invalid);
    }
    msa__matches m = {0};
    for (size_t behind = 0;; behind = m.end) { /* matches and what lies between them */
        MSA_TRY(msa__pattern_next(pattern, matcher, text, n, &m));
        MSA_TRY(count_piece(pieces, text + behind, (m.done ? n : m.begin) - behind));
        if (m.done) return MSA_OK;
        MSA_TRY(count_piece(pieces, text + m.begin, m.end - m.begin));
    }
}

void msa__pieces_free(msa__pieces *pieces)
{
    for (struct msa__block *block = pieces->blocks, *next; block; block = next) {
        next = block->next;
        free(block);
    }
    msa__names_destroy(&pieces->index);
    free(pieces->items);
    memset(pieces, 0, sizeof(*pieces));
}
