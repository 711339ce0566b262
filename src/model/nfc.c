/* Unicode normalization form C with utf8proc's tables; see nfc.h.
 *
 * Decomposition and composition are utf8proc's. The canonical ordering between them is ours:
 * utf8proc sorts a run of combining marks by swapping neighbours, which takes quadratic time on a
 * long hostile run; a counting sort by combining class does not.
 */
#include "model/nfc.h"

#include "base/alloc.h"
#include "base/error.h"
#include "base/overflow.h"
#include "model/utf8.h"

#include <string.h>
#include <utf8proc.h>

int32_t msa__nfc_may_change(const char *text, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if ((unsigned char)text[i] >= 0xcc)
            return 1; /* U+0300, the first that can, starts with CC */
    }
    return 0;
}

static uint8_t class_of(int32_t c)
{
    return (uint8_t)utf8proc_get_property(c)->combining_class;
}

/* Sort marks [0, n) by combining class, stable; spare has room for n. */
static void sort_marks(int32_t *marks, size_t n, int32_t *spare)
{
    size_t begin[256] = {0};
    for (size_t i = 0; i < n; i++) begin[class_of(marks[i])]++;
    size_t sum = 0;
    for (int c = 0; c < 256; c++) {
        size_t count = begin[c];
        begin[c] = sum;
        sum += count;
    }
    for (size_t i = 0; i < n; i++) spare[begin[class_of(marks[i])]++] = marks[i];
    memcpy(marks, spare, n * sizeof(*marks));
}

static void sort_all_marks(int32_t *characters, size_t n, int32_t *spare)
{
    for (size_t i = 0; i < n; i++) {
        size_t run = 0;
        while (i + run < n && class_of(characters[i + run])) run++;
        if (run > 1) sort_marks(&characters[i], run, spare);
        i += run;
    }
}

/* Decomposed characters; counts only when to is NULL. */
static size_t decompose(const char *text, size_t n, int32_t *to, size_t capacity)
{
    size_t count = 0;
    for (size_t i = 0, bytes; i < n; i += bytes) {
        int boundary = 0;
        int32_t character = (int32_t)msa__utf8_decode(text + i, &bytes);
        utf8proc_ssize_t parts = utf8proc_decompose_char(
            character, to ? to + count : NULL, to ? (utf8proc_ssize_t)(capacity - count) : 0,
            UTF8PROC_STABLE | UTF8PROC_DECOMPOSE, &boundary);
        count += (size_t)parts;
    }
    return count;
}

msa_status msa__nfc(msa__text *out, const char *text, size_t n)
{
    const msa_allocator *allocator = &msa__default_allocator;
    size_t count = decompose(text, n, NULL, 0), bytes;
    if (msa__mul_overflow(count, 2 * sizeof(int32_t), &bytes)) {
        return MSA_FAIL(MSA_ENOMEM, "tokenizer: no memory to normalize %zu bytes", n);
    }
    int32_t *characters = allocator->alloc(allocator->user, bytes, 16);
    if (!characters) {
        return MSA_FAIL(MSA_ENOMEM, "tokenizer: no memory to normalize %zu bytes", n);
    }
    (void)decompose(text, n, characters, count);
    sort_all_marks(characters, count, characters + count);
    utf8proc_ssize_t composed = utf8proc_normalize_utf32(characters, (utf8proc_ssize_t)count,
                                                         UTF8PROC_STABLE | UTF8PROC_COMPOSE);
    for (utf8proc_ssize_t i = 0; i < composed; i++) {
        char character[4];
        msa__text_add(out, character, msa__utf8_encode((uint32_t)characters[i], character));
    }
    allocator->free(allocator->user, characters, bytes);
    return out->status;
}
