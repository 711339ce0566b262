/* Growing buffers; see buffers.h. */
#include "model/buffers.h"

#include "base/alloc.h"
#include "base/error.h"
#include "base/overflow.h"

#include <string.h>

/* Room for n more items: at least doubled, so that adding one at a time stays linear. */
static msa_status grow(void **items, size_t used, size_t *capacity, size_t n, size_t item_bytes)
{
    const msa_allocator *allocator = &msa__default_allocator;
    size_t needed, wanted, bytes;
    if (!msa__add_overflow(used, n, &needed) && needed <= *capacity) return MSA_OK;
    if (msa__add_overflow(used, n, &needed) || msa__mul_overflow(needed, 2, &wanted) ||
        msa__mul_overflow(wanted < 64 ? 64 : wanted, item_bytes, &bytes)) {
        return MSA_FAIL(MSA_ENOMEM, "text: no memory for %zu more items", n);
    }
    void *fresh = allocator->alloc(allocator->user, bytes, 16);
    if (!fresh) return MSA_FAIL(MSA_ENOMEM, "text: no memory for %zu bytes", bytes);
    if (used) memcpy(fresh, *items, used * item_bytes);
    allocator->free(allocator->user, *items, *capacity * item_bytes);
    *items = fresh;
    *capacity = bytes / item_bytes;
    return MSA_OK;
}

void msa__text_add(msa__text *text, const char *bytes, size_t n)
{
    if (text->status != MSA_OK || n == 0) return;
    void *items = text->bytes;
    text->status = grow(&items, text->n, &text->capacity, n, 1);
    text->bytes = items;
    if (text->status != MSA_OK) return;
    memcpy(text->bytes + text->n, bytes, n);
    text->n += n;
}

void msa__text_puts(msa__text *text, const char *string)
{
    msa__text_add(text, string, strlen(string));
}

void msa__text_free(msa__text *text)
{
    msa__default_allocator.free(msa__default_allocator.user, text->bytes, text->capacity);
    text->bytes = NULL;
    text->n = text->capacity = 0;
}

msa_status msa__text_finish(msa__text *text, char **bytes, size_t *n)
{
    size_t length = text->n;
    msa__text_add(text, "", 1); /* the NUL of the literal */
    if (text->status != MSA_OK) {
        msa__text_free(text);
        return text->status;
    }
    *bytes = text->bytes;
    *n = length;
    return MSA_OK;
}

msa_status msa__ids_add(msa__ids *ids, const int32_t *more, size_t n)
{
    void *items = ids->ids;
    MSA_TRY(grow(&items, ids->n, &ids->capacity, n, sizeof(*more)));
    ids->ids = items;
    if (n) memcpy(ids->ids + ids->n, more, n * sizeof(*more));
    ids->n += n;
    return MSA_OK;
}
