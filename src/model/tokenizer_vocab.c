/* The tokens, merges and added tokens of a tokenizer.json. */
#include "base/alloc.h"
#include "base/error.h"
#include "model/byte_alphabet.h"
#include "model/json_optional.h"
#include "model/nfc.h"
#include "model/tokenizer.h"

#include <string.h>

/* Sum of the lengths of all token spellings, and the ids they may use. */
typedef struct survey {
    size_t n_tokens, bytes;
    int32_t n_ids;
} survey;

typedef struct reader {
    msa_tokenizer *tokenizer;
    const msa__json *vocab, *merges, *added; /* added may be NULL */
    char *free_storage;                      /* unused rest of tokenizer.storage */
} reader;

static void *allocate(size_t bytes)
{
    return msa__default_allocator.alloc(msa__default_allocator.user, bytes, 64);
}

/* ---- tokens ------------------------------------------------------------------------------- */

static msa_status survey_token(survey *s, const msa__json *id, size_t bytes)
{
    int32_t value;
    MSA_TRY(msa__json_int32(id, 0, MSA__MAX_TOKEN_ID - 1, &value));
    if (value >= s->n_ids) s->n_ids = value + 1;
    s->n_tokens++;
    s->bytes += bytes;
    return MSA_OK;
}

static msa_status survey_tokens(const reader *r, survey *s)
{
    MSA__JSON_EACH(token, r->vocab) MSA_TRY(survey_token(s, token, token->key_bytes));
    if (!r->added) return MSA_OK;
    MSA__JSON_EACH(token, r->added)
    {
        const msa__json *id, *content;
        MSA_TRY(msa__json_need(token, "id", &id));
        MSA_TRY(need_typed(token, "content", MSA__JSON_STRING, &content));
        MSA_TRY(survey_token(s, id, content->text_bytes));
    }
    return MSA_OK;
}

static msa_status create_tables(reader *r)
{
    msa_tokenizer *t = r->tokenizer;
    survey s = {0};
    MSA_TRY(survey_tokens(r, &s));
    t->n_ids = s.n_ids;
    t->storage = allocate(2 * s.bytes + 1); /* spellings, and the bytes they stand for */
    t->tokens = allocate(((size_t)s.n_ids + 1) * sizeof(*t->tokens));
    if (!t->storage || !t->tokens) {
        return MSA_FAIL(MSA_ENOMEM, "tokenizer: no memory for %zu tokens", s.n_tokens);
    }
    memset(t->tokens, 0, ((size_t)s.n_ids + 1) * sizeof(*t->tokens));
    r->free_storage = t->storage;
    MSA_TRY(msa__names_create(&t->spellings, &msa__default_allocator, s.n_tokens));
    return msa__bpe_create(&t->bpe, s.n_ids, s.n_tokens, (size_t)r->merges->n_children);
}

/* Record a token. A spelling outside the byte alphabet stands for its own UTF-8 bytes; no text
 * reaches it through merges. */
static msa_status add_token(reader *r, const msa__json *place, const char *spelling, size_t n,
                            int32_t id, int32_t in_vocab)
{
    msa_tokenizer *t = r->tokenizer;
    msa__token *token = &t->tokens[id];
    if (token->spelling) {
        return msa__json_fail(place, MSA_EFORMAT, "must be the only token of its id");
    }
    char *copy = r->free_storage, *bytes = copy + n;
    memcpy(copy, spelling, n);
    int32_t existing;
    MSA_TRY(msa__names_add(&t->spellings, copy, n, id, &existing));
    if (existing >= 0) {
        return msa__json_fail(place, MSA_EFORMAT, "must not repeat the text of token %d", existing);
    }
    int64_t n_bytes = msa__bytes_from_alphabet(copy, n, bytes);
    r->free_storage = n_bytes < 0 ? bytes : bytes + n_bytes;
    token->spelling = copy;
    token->bytes = n_bytes < 0 ? copy : bytes;
    token->n = (uint32_t)(n_bytes < 0 ? (int64_t)n : n_bytes);
    if (!in_vocab || n_bytes < 0) return MSA_OK;
    return msa__bpe_add_token(&t->bpe, bytes, (size_t)n_bytes, id);
}

static msa_status read_vocab(reader *r)
{
    MSA__JSON_EACH(token, r->vocab)
    {
        int32_t id;
        MSA_TRY(msa__json_int32(token, 0, MSA__MAX_TOKEN_ID - 1, &id));
        if (token->key_bytes == 0) return msa__json_fail(token, MSA_EFORMAT, "must not be empty");
        MSA_TRY(add_token(r, token, token->key, token->key_bytes, id, 1));
    }
    for (int byte = 0; byte < 256; byte++) {
        /* C0, C1 and F5 to FF appear in no UTF-8 text. */
        if (byte == 0xc0 || byte == 0xc1 || byte >= 0xf5) continue;
        if (r->tokenizer->bpe.byte_ids[byte] < 0) {
            return msa__json_fail(r->vocab, MSA_EFORMAT, "must have a token for byte %d", byte);
        }
    }
    return MSA_OK;
}

/* ---- merges ------------------------------------------------------------------------------- */

/* The two spellings of a merge: ["a", "b"] or "a b". */
static msa_status split_merge(const msa__json *merge, const char *parts[2], size_t bytes[2])
{
    if (merge->type == MSA__JSON_ARRAY && merge->n_children == 2) {
        const msa__json *left = merge->child, *right = left->next;
        MSA_TRY(msa__json_type_is(left, MSA__JSON_STRING));
        MSA_TRY(msa__json_type_is(right, MSA__JSON_STRING));
        parts[0] = left->text;
        bytes[0] = left->text_bytes;
        parts[1] = right->text;
        bytes[1] = right->text_bytes;
        return MSA_OK;
    }
    const char *space = NULL;
    if (merge->type == MSA__JSON_STRING) space = memchr(merge->text, ' ', merge->text_bytes);
    if (!space || memchr(space + 1, ' ', merge->text_bytes - (size_t)(space + 1 - merge->text))) {
        return msa__json_fail(merge, MSA_EFORMAT, "must be two tokens");
    }
    parts[0] = merge->text;
    bytes[0] = (size_t)(space - merge->text);
    parts[1] = space + 1;
    bytes[1] = merge->text_bytes - bytes[0] - 1;
    return MSA_OK;
}

/* product is a buffer for the joined spelling. */
static msa_status read_merge(reader *r, const msa__json *merge, uint32_t rank, msa__text *product)
{
    const msa__names *spellings = &r->tokenizer->spellings;
    const char *parts[2];
    size_t bytes[2];
    int32_t ids[2];
    MSA_TRY(split_merge(merge, parts, bytes));
    product->n = 0;
    for (int i = 0; i < 2; i++) {
        ids[i] = msa__names_find(spellings, parts[i], bytes[i]);
        if (ids[i] < 0) {
            return msa__json_fail(merge, MSA_EFORMAT, "its %s token must be in model.vocab",
                                  i == 0 ? "left" : "right");
        }
        msa__text_add(product, parts[i], bytes[i]);
    }
    MSA_TRY(product->status);
    int32_t id = msa__names_find(spellings, product->bytes, product->n);
    if (id < 0) {
        return msa__json_fail(merge, MSA_EFORMAT, "its product must be in model.vocab");
    }
    return msa__bpe_add_merge(&r->tokenizer->bpe, ids[0], ids[1], rank, id);
}

static msa_status read_merges(reader *r)
{
    msa__text product = {0};
    msa_status status = MSA_OK;
    uint32_t rank = 0;
    MSA__JSON_EACH(merge, r->merges)
    {
        status = read_merge(r, merge, rank++, &product);
        if (status != MSA_OK) break;
    }
    msa__text_free(&product);
    return status;
}

static msa_status read_model(reader *r, const msa__json *model)
{
    static const char *const empty_only[] = {"dropout", "continuing_subword_prefix",
                                             "end_of_word_suffix"};
    for (size_t i = 0; i < sizeof(empty_only) / sizeof(empty_only[0]); i++) {
        const msa__json *value = msa__json_get(model, empty_only[i]);
        if (is_null(value) || msa__json_equals(value, "")) continue;
        double number = 1;
        if (value->type == MSA__JSON_NUMBER) MSA_TRY(msa__json_double(value, &number));
        if (number != 0) return msa__json_fail(value, MSA_EUNSUPPORTED, "is not supported");
    }
    MSA_TRY(read_vocab(r));
    MSA_TRY(read_merges(r));
    return optional_bool(model, "ignore_merges", 0, &r->tokenizer->bpe.ignore_merges);
}

/* ---- added tokens ------------------------------------------------------------------------- */

static msa_status read_added_token(reader *r, const msa__json *token)
{
    msa_tokenizer *t = r->tokenizer;
    const msa__json *content = msa__json_get(token, "content");
    size_t n = content->text_bytes;
    int32_t id, single_word, lstrip, rstrip, special, normalized;
    MSA_TRY(msa__json_int32(msa__json_get(token, "id"), 0, MSA__MAX_TOKEN_ID - 1, &id));
    MSA_TRY(optional_bool(token, "single_word", 0, &single_word));
    MSA_TRY(optional_bool(token, "lstrip", 0, &lstrip));
    MSA_TRY(optional_bool(token, "rstrip", 0, &rstrip));
    MSA_TRY(optional_bool(token, "special", 0, &special));
    MSA_TRY(optional_bool(token, "normalized", !special, &normalized));
    if (n == 0 || n > MSA__MAX_ADDED_BYTES) {
        return msa__json_fail(content, MSA_EFORMAT, "must have 1 to %d bytes",
                              MSA__MAX_ADDED_BYTES);
    }
    if (normalized && t->nfc && msa__nfc_may_change(content->text, n)) {
        return msa__json_fail(content, MSA_EUNSUPPORTED,
                              "is normalized and not plain, which is not supported");
    }
    /* A token of the vocabulary may be added again under its id. */
    int32_t existing = msa__names_find(&t->spellings, content->text, n);
    if (existing != id || t->tokens[id].added) {
        MSA_TRY(add_token(r, content, content->text, n, id, 0));
    }
    t->tokens[id].added = 1;
    msa__added_set *set = normalized ? &t->normalized : &t->raw;
    set->tokens[set->n++] = (msa__added_token){.text = t->tokens[id].spelling,
                                               .bytes = n,
                                               .id = id,
                                               .single_word = (uint8_t)single_word,
                                               .lstrip = (uint8_t)lstrip,
                                               .rstrip = (uint8_t)rstrip};
    return MSA_OK;
}

static msa_status read_added_tokens(reader *r)
{
    msa_tokenizer *t = r->tokenizer;
    if (r->added) {
        size_t bytes = ((size_t)r->added->n_children + 1) * sizeof(*t->raw.tokens);
        t->raw.tokens = allocate(bytes);
        t->normalized.tokens = allocate(bytes);
        if (!t->raw.tokens || !t->normalized.tokens) {
            return MSA_FAIL(MSA_ENOMEM, "tokenizer: no memory for %d added tokens",
                            r->added->n_children);
        }
        MSA__JSON_EACH(token, r->added) MSA_TRY(read_added_token(r, token));
    }
    msa__added_sort(&t->raw);
    msa__added_sort(&t->normalized);
    return MSA_OK;
}

msa_status msa__tokenizer_read_model(msa_tokenizer *tokenizer, const msa__json *model,
                                     const msa__json *added)
{
    reader r = {.tokenizer = tokenizer, .added = added};
    MSA_TRY(need_typed(model, "vocab", MSA__JSON_OBJECT, &r.vocab));
    MSA_TRY(need_typed(model, "merges", MSA__JSON_ARRAY, &r.merges));
    MSA_TRY(create_tables(&r));
    MSA_TRY(read_model(&r, model));
    return read_added_tokens(&r);
}
