/* Text to token ids and back.
 *
 * encode: text -> added tokens cut out -> normalized -> further added tokens cut out -> pieces of
 * the pre-tokenizer -> byte-pair encoding. decode: the bytes of each token, one after the other.
 */
#include "model/tokenizer.h"

#include "base/alloc.h"
#include "base/error.h"
#include "model/nfc.h"
#include "model/utf8.h"

#include <string.h>

#define MAX_FILE_BYTES ((size_t)256 << 20)

/* One call of encode: its working memory and its result. */
typedef struct encoder {
    const msa_tokenizer *tokenizer;
    msa__matcher *matcher;
    msa__text normalized; /* a section after normalization */
    msa__text prefixed;   /* a piece with a space in front */
    msa__ids ids;
} encoder;

msa_status msa__tokenizer_create(msa_tokenizer **out, const msa__json *root)
{
    *out = NULL;
    const msa_allocator *allocator = &msa__default_allocator;
    msa_tokenizer *tokenizer = allocator->alloc(allocator->user, sizeof(*tokenizer), 64);
    if (!tokenizer) return MSA_FAIL(MSA_ENOMEM, "tokenizer: no memory");
    memset(tokenizer, 0, sizeof(*tokenizer));
    msa_status status = msa__tokenizer_fill(tokenizer, root);
    if (status == MSA_OK)
        *out = tokenizer;
    else
        msa_tokenizer_close(tokenizer);
    return status;
}

msa_status msa_tokenizer_open(msa_tokenizer **out, const char *dir)
{
    if (!out || !dir) return MSA_FAIL(MSA_EINVAL, "tokenizer_open: out and dir must not be NULL");
    *out = NULL;
    const msa__json *root;
    MSA_TRY(msa__json_read(&root, NULL, dir, "tokenizer.json", MAX_FILE_BYTES));
    msa_status status = msa__tokenizer_create(out, root);
    msa__json_free(root);
    return status;
}

void msa_tokenizer_close(msa_tokenizer *tokenizer)
{
    if (!tokenizer) return;
    for (int32_t i = 0; i < tokenizer->n_steps; i++) {
        msa__pattern_destroy(tokenizer->steps[i].pattern);
    }
    msa__bpe_destroy(&tokenizer->bpe);
    msa__names_destroy(&tokenizer->spellings);
    msa_free(tokenizer->raw.tokens);
    msa_free(tokenizer->normalized.tokens);
    msa_free(tokenizer->tokens);
    msa_free(tokenizer->storage);
    msa_free(tokenizer);
}

int32_t msa_tokenizer_size(const msa_tokenizer *tokenizer)
{
    return tokenizer ? tokenizer->n_ids : 0;
}

int32_t msa_tokenizer_find(const msa_tokenizer *tokenizer, const char *token)
{
    if (!tokenizer || !token) return -1;
    return msa__names_find(&tokenizer->spellings, token, strlen(token));
}

/* ---- encode ------------------------------------------------------------------------------- */

/* A piece through pre-tokenizers `step` and on. */
static msa_status encode_piece(encoder *e, int32_t step, const char *text, size_t n)
{
    if (n == 0) return MSA_OK;
    if (step == e->tokenizer->n_steps) return msa__bpe_encode(&e->tokenizer->bpe, text, n, &e->ids);
    const msa__pre_step *s = &e->tokenizer->steps[step];
    if (s->prefix_space && text[0] != ' ') { /* only the last step has it: one buffer is enough */
        e->prefixed.n = 0;
        msa__text_puts(&e->prefixed, " ");
        msa__text_add(&e->prefixed, text, n);
        MSA_TRY(e->prefixed.status);
        text = e->prefixed.bytes;
        n = e->prefixed.n;
    }
    if (!s->pattern) return encode_piece(e, step + 1, text, n);
    msa__matches m = {0};
    for (size_t behind = 0;; behind = m.end) { /* matches and what lies between them */
        MSA_TRY(msa__pattern_next(s->pattern, e->matcher, text, n, &m));
        size_t begin = m.done ? n : m.begin;
        MSA_TRY(encode_piece(e, step + 1, text + behind, begin - behind));
        if (m.done) return MSA_OK;
        MSA_TRY(encode_piece(e, step + 1, text + m.begin, m.end - m.begin));
    }
}

typedef msa_status (*section_fn)(encoder *e, const char *text, size_t n);

/* The added tokens of a text become ids, the sections between them go to fn. */
static msa_status encode_around(encoder *e, const msa__added_set *set, const char *text, size_t n,
                                section_fn fn)
{
    size_t from = 0, begin = 0, end = 0, behind = 0;
    for (;;) {
        const msa__added_token *token = msa__added_next(set, text, n, &from, &begin, &end);
        MSA_TRY(fn(e, text + behind, (token ? begin : n) - behind));
        if (!token) return MSA_OK;
        MSA_TRY(msa__ids_add(&e->ids, &token->id, 1));
        behind = end;
    }
}

static msa_status encode_section(encoder *e, const char *text, size_t n)
{
    return encode_piece(e, 0, text, n);
}

static msa_status encode_normalized(encoder *e, const char *text, size_t n)
{
    if (n == 0) return MSA_OK;
    if (e->tokenizer->nfc && msa__nfc_may_change(text, n)) {
        e->normalized.n = 0;
        MSA_TRY(msa__nfc(&e->normalized, text, n));
        text = e->normalized.bytes;
        n = e->normalized.n;
    }
    return encode_around(e, &e->tokenizer->normalized, text, n, encode_section);
}

msa_status msa_tokenizer_encode(const msa_tokenizer *tokenizer, const char *text, size_t text_bytes,
                                int32_t **ids, size_t *n_ids)
{
    if (!tokenizer || (!text && text_bytes) || !ids || !n_ids) {
        return MSA_FAIL(MSA_EINVAL, "tokenizer_encode: an argument is NULL");
    }
    *ids = NULL;
    *n_ids = 0;
    if (text_bytes > INT32_MAX / 4) { /* normalization may triple the length; positions are int32 */
        return MSA_FAIL(MSA_EINVAL, "tokenizer_encode: text_bytes = %zu, must be at most %d",
                        text_bytes, INT32_MAX / 4);
    }
    size_t invalid = msa__utf8_check(text, text_bytes);
    if (invalid < text_bytes) {
        return MSA_FAIL(MSA_EFORMAT, "tokenizer_encode: byte %zu = 0x%02x, must be valid UTF-8",
                        invalid, (unsigned)(unsigned char)text[invalid]);
    }
    if (text_bytes == 0) return MSA_OK;
    encoder e = {.tokenizer = tokenizer};
    msa_status status = msa__matcher_create(&e.matcher);
    if (status == MSA_OK) {
        status = encode_around(&e, &tokenizer->raw, text, text_bytes, encode_normalized);
    }
    msa__matcher_destroy(e.matcher);
    msa__text_free(&e.normalized);
    msa__text_free(&e.prefixed);
    if (status != MSA_OK) {
        msa_free(e.ids.ids);
        return status;
    }
    *ids = e.ids.ids;
    *n_ids = e.ids.n;
    return MSA_OK;
}

/* ---- decode ------------------------------------------------------------------------------- */

msa_status msa_tokenizer_decode(const msa_tokenizer *tokenizer, const int32_t *ids, size_t n_ids,
                                char **text, size_t *text_bytes)
{
    if (!tokenizer || (!ids && n_ids) || !text || !text_bytes) {
        return MSA_FAIL(MSA_EINVAL, "tokenizer_decode: an argument is NULL");
    }
    *text = NULL;
    *text_bytes = 0;
    msa__text out = {0};
    for (size_t i = 0; i < n_ids; i++) {
        int32_t id = ids[i];
        if (id < 0 || id >= tokenizer->n_ids || !tokenizer->tokens[id].spelling) {
            msa__text_free(&out);
            return MSA_FAIL(MSA_EINVAL, "tokenizer_decode: ids[%zu] = %d, must be a token", i, id);
        }
        msa__text_add(&out, tokenizer->tokens[id].bytes, tokenizer->tokens[id].n);
    }
    return msa__text_finish(&out, text, text_bytes);
}
