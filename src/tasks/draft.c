/* Growing strings and the rest of a sample; see draft.h. */
#include "tasks/draft.h"

#include "base/error.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int reserve(msa__string *string, size_t n)
{
    if (string->status != MSA_OK) return 0;
    if (string->bytes && n < string->capacity - string->n) return 1;
    size_t capacity = string->capacity ? string->capacity : 256;
    while (capacity <= SIZE_MAX / 4 && n >= capacity - string->n) capacity *= 2;
    char *bytes = n < capacity - string->n ? realloc(string->bytes, capacity) : NULL;
    if (!bytes) {
        string->status = MSA_FAIL(MSA_ENOMEM, "task: no memory for a text of %zu bytes", capacity);
        return 0;
    }
    string->bytes = bytes;
    string->capacity = capacity;
    return 1;
}

void msa__string_add(msa__string *string, const char *bytes, size_t n)
{
    if (!reserve(string, n)) return;
    memcpy(string->bytes + string->n, bytes, n);
    string->n += n;
    string->bytes[string->n] = '\0';
}

void msa__string_print(msa__string *string, const char *format, ...)
{
    char piece[1024]; /* longer than any single line that a family writes */
    va_list args;
    va_start(args, format);
    int n = vsnprintf(piece, sizeof(piece), format, args);
    va_end(args);
    msa__string_add(string, piece, (size_t)n < sizeof(piece) ? (size_t)n : sizeof(piece) - 1);
}

static void clear(msa__string *string)
{
    string->n = 0;
    msa__string_add(string, "", 0);
}

void msa__draft_clear(msa__draft *draft)
{
    clear(&draft->prompt);
    clear(&draft->prefix);
    clear(&draft->answer);
    draft->n_references = draft->n_depths = 0;
}

void msa__draft_free(msa__draft *draft)
{
    free(draft->prompt.bytes);
    free(draft->prefix.bytes);
    free(draft->answer.bytes);
}

msa_status msa__draft_status(const msa__draft *draft)
{
    if (draft->prompt.status != MSA_OK) return draft->prompt.status;
    return draft->prefix.status != MSA_OK ? draft->prefix.status : draft->answer.status;
}

char *msa__draft_reference(msa__draft *draft)
{
    return draft->references[draft->n_references++];
}

uint32_t *msa__draft_items(msa__draft *draft, int64_t n)
{
    uint32_t *items = malloc((size_t)n * sizeof(*items));
    if (!items) {
        draft->prompt.status =
            MSA_FAIL(MSA_ENOMEM, "task: no memory for a list of %lld words", (long long)n);
    }
    return items;
}

void msa__add_list(msa__string *string, const char (*items)[MSA__REFERENCE_BYTES], int32_t n)
{
    for (int32_t i = 0; i < n; i++) {
        const char *before = i == 0 ? "" : i < n - 1 ? ", " : n == 2 ? " and " : ", and ";
        msa__string_print(string, "%s%s", before, items[i]);
    }
}
