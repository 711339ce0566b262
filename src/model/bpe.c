/* Byte-pair encoding; see bpe.h.
 *
 * Most pieces are words of a few bytes: a scan for the lowest rank beats any queue there. Pieces of
 * thousands of bytes exist too (base64, a language without spaces), so long ones merge through a
 * heap in n log n steps. Both take the lowest rank and then the leftmost pair, hence give equal
 * ids.
 */
#include "model/bpe.h"

#include "base/alloc.h"
#include "base/error.h"
#include "base/overflow.h"

#include <string.h>

#define SHORT_PIECE 48
#define NO_RANK     UINT32_MAX
#define MAX_PROBES  256

enum { WHOLE_UNKNOWN, WHOLE_YES, WHOLE_NO };

static void *allocate(size_t n, size_t item_bytes)
{
    size_t bytes;
    if (msa__mul_overflow(n, item_bytes, &bytes)) return NULL;
    return msa__default_allocator.alloc(msa__default_allocator.user, bytes, 64);
}

msa_status msa__bpe_create(msa__bpe *bpe, int32_t n_ids, size_t n_tokens, size_t n_merges)
{
    memset(bpe, 0, sizeof(*bpe));
    memset(bpe->byte_ids, -1, sizeof(bpe->byte_ids));
    bpe->n_ids = n_ids;
    MSA_TRY(msa__names_create(&bpe->pieces, &msa__default_allocator, n_tokens));
    size_t n_slots = 16;
    while (n_slots / 2 < n_merges) n_slots *= 2;
    bpe->merges = allocate(n_slots, sizeof(*bpe->merges));
    bpe->whole = allocate((size_t)n_ids, sizeof(*bpe->whole));
    if (!bpe->merges || !bpe->whole) {
        msa__bpe_destroy(bpe);
        return MSA_FAIL(MSA_ENOMEM, "tokenizer: no memory for %zu merges", n_merges);
    }
    memset(bpe->merges, 0xff, n_slots * sizeof(*bpe->merges));
    for (int32_t i = 0; i < n_ids; i++) atomic_init(&bpe->whole[i], WHOLE_UNKNOWN);
    bpe->n_slots = n_slots;
    return MSA_OK;
}

void msa__bpe_destroy(msa__bpe *bpe)
{
    const msa_allocator *allocator = &msa__default_allocator;
    msa__names_destroy(&bpe->pieces);
    allocator->free(allocator->user, bpe->merges, bpe->n_slots * sizeof(*bpe->merges));
    allocator->free(allocator->user, (void *)bpe->whole, (size_t)bpe->n_ids);
    bpe->merges = NULL;
    bpe->whole = NULL;
}

msa_status msa__bpe_add_token(msa__bpe *bpe, const char *bytes, size_t n, int32_t id)
{
    int32_t existing;
    MSA_TRY(msa__names_add(&bpe->pieces, bytes, n, id, &existing));
    if (n == 1) bpe->byte_ids[(unsigned char)bytes[0]] = id;
    if (n > bpe->longest) bpe->longest = n;
    return MSA_OK;
}

/* ---- pairs -------------------------------------------------------------------------------- */

static uint64_t pair_of(int32_t left, int32_t right)
{
    return (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
}

/* The slot of a pair, or the free one where it would be; NULL after too many probes. */
static msa__merge *find_merge(const msa__bpe *bpe, uint64_t pair)
{
    uint64_t hash = (pair ^ bpe->pieces.seed) * 0x9E3779B97F4A7C15u;
    size_t at = (hash ^ hash >> 32) & (bpe->n_slots - 1);
    for (int probe = 0; probe < MAX_PROBES; probe++) {
        msa__merge *merge = &bpe->merges[at];
        if (merge->pair == pair || merge->pair == UINT64_MAX) return merge;
        at = (at + 1) & (bpe->n_slots - 1);
    }
    return NULL;
}

/* Rank and product of neighbours; NO_RANK when they do not merge. */
static uint32_t rank_of(const msa__bpe *bpe, int32_t left, int32_t right, int32_t *product)
{
    const msa__merge *merge = find_merge(bpe, pair_of(left, right));
    if (!merge || merge->pair == UINT64_MAX) return NO_RANK;
    *product = merge->product;
    return merge->rank;
}

msa_status msa__bpe_add_merge(msa__bpe *bpe, int32_t left, int32_t right, uint32_t rank,
                              int32_t product)
{
    msa__merge *merge = find_merge(bpe, pair_of(left, right));
    if (!merge) return MSA_FAIL(MSA_EFORMAT, "tokenizer: merge %u collides with too many", rank);
    *merge = (msa__merge){pair_of(left, right), rank, product};
    return MSA_OK;
}

/* ---- short pieces ------------------------------------------------------------------------- */

/* Merge 1 <= n <= SHORT_PIECE bytes; returns the number of tokens. */
static size_t merge_short(const msa__bpe *bpe, const char *piece, size_t n, int32_t *tokens)
{
    uint32_t ranks[SHORT_PIECE]; /* of tokens i and i + 1 */
    int32_t products[SHORT_PIECE];
    for (size_t i = 0; i < n; i++) tokens[i] = bpe->byte_ids[(unsigned char)piece[i]];
    for (size_t i = 0; i + 1 < n; i++) {
        ranks[i] = rank_of(bpe, tokens[i], tokens[i + 1], &products[i]);
    }
    while (n > 1) {
        size_t best = 0;
        for (size_t i = 1; i + 1 < n; i++) {
            if (ranks[i] < ranks[best]) best = i;
        }
        if (ranks[best] == NO_RANK) break;
        tokens[best] = products[best];
        size_t behind = n - best - 2; /* tokens behind the pair */
        memmove(&tokens[best + 1], &tokens[best + 2], behind * sizeof(*tokens));
        memmove(&ranks[best], &ranks[best + 1], behind * sizeof(*ranks));
        memmove(&products[best], &products[best + 1], behind * sizeof(*products));
        n--;
        if (best > 0) {
            ranks[best - 1] = rank_of(bpe, tokens[best - 1], tokens[best], &products[best - 1]);
        }
        if (best + 1 < n) {
            ranks[best] = rank_of(bpe, tokens[best], tokens[best + 1], &products[best]);
        }
    }
    return n;
}

/* ---- long pieces -------------------------------------------------------------------------- */

typedef struct symbol {
    int32_t token;
    int32_t previous, next; /* -1: none */
    uint32_t rank;          /* of this token and the next; NO_RANK: none, or already merged away */
    int32_t product;
} symbol;

/* A binary heap of rank << 32 | position, the smallest on top. Entries whose rank is no longer that
 * of their position are stale and skipped. */
typedef struct heap {
    uint64_t *entries;
    size_t n;
} heap;

static void sift_down(heap *h, size_t at)
{
    uint64_t entry = h->entries[at];
    for (;;) {
        size_t child = 2 * at + 1;
        if (child >= h->n) break;
        if (child + 1 < h->n && h->entries[child + 1] < h->entries[child]) child++;
        if (h->entries[child] >= entry) break;
        h->entries[at] = h->entries[child];
        at = child;
    }
    h->entries[at] = entry;
}

static void heap_push(heap *h, uint64_t entry)
{
    size_t at = h->n++;
    while (at > 0 && h->entries[(at - 1) / 2] > entry) {
        h->entries[at] = h->entries[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    h->entries[at] = entry;
}

static uint64_t heap_pop(heap *h)
{
    uint64_t top = h->entries[0];
    h->entries[0] = h->entries[--h->n];
    if (h->n) sift_down(h, 0);
    return top;
}

/* Look at the pair that starts at a position. */
static void refresh(const msa__bpe *bpe, symbol *symbols, int32_t at, heap *h)
{
    symbol *s = &symbols[at];
    s->rank = NO_RANK;
    if (s->next < 0) return;
    s->rank = rank_of(bpe, s->token, symbols[s->next].token, &s->product);
    if (s->rank != NO_RANK) heap_push(h, (uint64_t)s->rank << 32 | (uint32_t)at);
}

static void merge_symbols(const msa__bpe *bpe, symbol *symbols, heap *h)
{
    while (h->n) {
        uint64_t entry = heap_pop(h);
        int32_t at = (int32_t)(uint32_t)entry;
        symbol *s = &symbols[at];
        if (s->rank != (uint32_t)(entry >> 32)) continue;
        symbol *right = &symbols[s->next];
        s->token = s->product;
        s->next = right->next;
        right->rank = NO_RANK;
        if (s->next >= 0) symbols[s->next].previous = at;
        refresh(bpe, symbols, at, h);
        if (s->previous >= 0) refresh(bpe, symbols, s->previous, h);
    }
}

static msa_status merge_long(const msa__bpe *bpe, const char *piece, size_t n, msa__ids *ids)
{
    msa_status status = MSA_OK;
    /* A merge takes one entry and adds at most two: the heap never holds more than 2 n. */
    heap h = {allocate(n, 2 * sizeof(*h.entries)), 0};
    symbol *symbols = allocate(n, sizeof(*symbols));
    if (!h.entries || !symbols) {
        status = MSA_FAIL(MSA_ENOMEM, "tokenizer: no memory for a piece of %zu bytes", n);
        goto done;
    }
    for (size_t i = 0; i < n; i++) {
        symbols[i].token = bpe->byte_ids[(unsigned char)piece[i]];
        symbols[i].previous = (int32_t)i - 1;
        symbols[i].next = i + 1 < n ? (int32_t)i + 1 : -1;
    }
    for (size_t i = 0; i < n; i++) refresh(bpe, symbols, (int32_t)i, &h);
    merge_symbols(bpe, symbols, &h);
    for (int32_t at = 0; at >= 0 && status == MSA_OK; at = symbols[at].next) {
        status = msa__ids_add(ids, &symbols[at].token, 1);
    }
done:
    msa_free(symbols);
    msa_free(h.entries);
    return status;
}

msa_status msa__bpe_encode(const msa__bpe *bpe, const char *piece, size_t n, msa__ids *ids)
{
    if (n == 0) return MSA_OK;
    int32_t id = n <= bpe->longest ? msa__names_find(&bpe->pieces, piece, n) : -1;
    if (id >= 0 && bpe->ignore_merges) return msa__ids_add(ids, &id, 1);
    if (n > SHORT_PIECE) return merge_long(bpe, piece, n, ids);

    uint8_t whole = WHOLE_NO;
    if (id >= 0) whole = atomic_load_explicit(&bpe->whole[id], memory_order_relaxed);
    if (whole == WHOLE_YES) return msa__ids_add(ids, &id, 1);
    int32_t tokens[SHORT_PIECE];
    size_t n_tokens = merge_short(bpe, piece, n, tokens);
    if (whole == WHOLE_UNKNOWN) {
        whole = n_tokens == 1 && tokens[0] == id ? WHOLE_YES : WHOLE_NO;
        atomic_store_explicit(&bpe->whole[id], whole, memory_order_relaxed);
    }
    return msa__ids_add(ids, tokens, n_tokens);
}
