/* See copy_source.h. */
#include "data/copy_source.h"

#include "base/error.h"
#include "base/rng.h"
#include "model/checksum.h"
#include "model/json_optional.h"

#include <stdlib.h>
#include <string.h>

enum { SHORTEST = 8, LONGEST = 64 }; /* tokens of a passage */

msa_status msa__copy_source_open(msa__copy_source *source, const msa__json *description,
                                 uint64_t *fingerprint)
{
    const msa__json *shuffled = msa__json_get(description, "shuffled");
    MSA_TRY(msa__lengths_read(&source->lengths, msa__json_get(description, "copies"), fingerprint));
    source->shuffled = 0.5;
    if (shuffled) MSA_TRY(msa__json_double(shuffled, &source->shuffled));
    if (!(source->shuffled >= 0 && source->shuffled <= 1)) {
        return msa__json_fail(shuffled, MSA_EFORMAT, "must be a number from 0 to 1");
    }
    *fingerprint = msa__checksum(*fingerprint, &source->shuffled, sizeof(source->shuffled));
    return MSA_OK;
}

void msa__copy_source_close(msa__copy_source *source)
{
    msa__lengths_free(&source->lengths);
}

static uint64_t pair(const uint32_t *words)
{
    return (uint64_t)words[1] << 32 | words[0];
}

/* The first half, from one place of the text or each token from another. */
static void write_text(const msa__token_source *tokens, uint64_t key, uint64_t index,
                       int32_t shuffled, int32_t *document, int64_t n)
{
    uint64_t n_tokens = (uint64_t)tokens->n_tokens;
    uint32_t words[4];
    msa__philox(key, index, 1, words);
    if (!shuffled) {
        msa__token_source_copy(tokens, (int64_t)(pair(words) % n_tokens), document, n);
        return;
    }
    uint64_t words_key = pair(words);
    for (int64_t i = 0; i < n; i++) {
        msa__philox(words_key, (uint64_t)i, 0, words);
        msa__token_source_copy(tokens, (int64_t)(pair(words) % n_tokens), document + i, 1);
    }
}

/* Passages of the first half until the document is full. */
static void write_copies(uint64_t key, uint64_t index, int32_t *document, int64_t half, int64_t n)
{
    for (int64_t at = half, count = 0; at < n; count++) {
        uint32_t words[4];
        msa__philox(key, index, (uint64_t)count + 2, words);
        int64_t passage = SHORTEST + words[0] % (LONGEST - SHORTEST + 1);
        if (passage > half) passage = half;
        if (passage > n - at) passage = n - at;
        int64_t from = (int64_t)(pair(words + 1) % (uint64_t)(half - passage + 1));
        memcpy(document + at, document + from, (size_t)passage * sizeof(*document));
        at += passage;
    }
}

msa_status msa__copy_source_row(const msa__copy_source *source, const msa__token_source *tokens,
                                int32_t eos, uint64_t key, uint64_t row, int64_t length,
                                msa__batch *out)
{
    int32_t *document = malloc((size_t)length * sizeof(*document));
    int64_t left = length;
    if (!document) return MSA_FAIL(MSA_ENOMEM, "dataset: no memory for a copied document");
    for (uint64_t index = row << MSA__SAMPLE_BITS;; index++) {
        uint32_t words[4];
        msa__philox(key, index, 0, words);
        int64_t n = msa__lengths_draw(&source->lengths, words[0], left), half = (n + 1) / 2;
        if (n == 0) break;
        int32_t shuffled = (double)msa__uniform(words[1]) < source->shuffled;
        write_text(tokens, key, index, shuffled, document, half);
        write_copies(key, index, document, half, n);
        msa__batch_add(out, document, n, -1, shuffled ? half - 1 : 0);
        left -= n;
    }
    free(document);
    if (left == length) {
        return MSA_FAIL(MSA_EINVAL,
                        "dataset: sequences of %lld tokens, the lengths of copies are all above",
                        (long long)length);
    }
    if (left > 0) msa__batch_pad(out, eos, left);
    return MSA_OK;
}
