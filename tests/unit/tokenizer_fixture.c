/* Small tokenizers for tests; see tokenizer_fixture.h. */
#include "unit/tokenizer_fixture.h"

#include "harness/cmocka_all.h"
#include "model/utf8.h"

#include <stdio.h>
#include <stdlib.h>

/* The byte alphabet, written down independently of the code under test: a byte that is no printable
 * Latin-1 character is the next one from U+0100 on. */
static void add_alphabet(msa__text *out)
{
    uint32_t next = 0x100;
    for (uint32_t byte = 0; byte < 256; byte++) {
        int printable = (byte >= '!' && byte <= '~') || (byte >= 0xa1 && byte <= 0xac) ||
                        (byte >= 0xae && byte <= 0xff);
        char spelling[8], member[32];
        size_t n = msa__utf8_encode(printable ? byte : next++, spelling);
        spelling[n] = '\0';
        const char *escape = byte == '"' || byte == '\\' ? "\\" : "";
        (void)snprintf(member, sizeof(member), "%s\"%s%s\":%u", byte ? "," : "", escape, spelling,
                       (unsigned)byte);
        msa__text_puts(out, member);
    }
}

static void add_part(msa__text *out, const char *name, const char *value, const char *otherwise)
{
    msa__text_puts(out, ",\"");
    msa__text_puts(out, name);
    msa__text_puts(out, "\":");
    msa__text_puts(out, value ? value : otherwise);
}

char *tokenizer_text(const tokenizer_parts *parts)
{
    msa__text out = {0};
    char *text;
    size_t n;
    msa__text_puts(&out, "{\"version\":\"1.0\",\"added_tokens\":[");
    msa__text_puts(&out, parts->added ? parts->added : "");
    msa__text_puts(&out, "]");
    add_part(&out, "normalizer", parts->normalizer, "null");
    add_part(&out, "pre_tokenizer", parts->pre_tokenizer, BARE_BYTE_LEVEL);
    add_part(&out, "decoder", parts->decoder, "{\"type\":\"ByteLevel\"}");
    msa__text_puts(&out, ",\"model\":{\"type\":\"BPE\",");
    if (parts->model) msa__text_puts(&out, parts->model);
    msa__text_puts(&out, "\"vocab\":{");
    add_alphabet(&out);
    if (parts->tokens) msa__text_puts(&out, ",");
    if (parts->tokens) msa__text_puts(&out, parts->tokens);
    msa__text_puts(&out, "},\"merges\":[");
    msa__text_puts(&out, parts->merges ? parts->merges : "");
    msa__text_puts(&out, "]}}");
    EXPECT_OK(msa__text_finish(&out, &text, &n));
    return text;
}

msa_status tokenizer_from_text(msa_tokenizer **out, const char *text, size_t n)
{
    const msa__json *root;
    *out = NULL;
    msa_status status = msa__json_parse(&root, NULL, "tokenizer.json", text, n);
    if (status != MSA_OK) return status;
    status = msa__tokenizer_create(out, root);
    msa__json_free(root);
    return status;
}

msa_tokenizer *tokenizer_from_parts(tokenizer_parts parts)
{
    msa_tokenizer *tokenizer;
    char *text = tokenizer_text(&parts);
    EXPECT_OK(tokenizer_from_text(&tokenizer, text, strlen(text)));
    msa_free(text);
    return tokenizer;
}

void expect_ids_n(const msa_tokenizer *tokenizer, const char *text, size_t n, const char *expected)
{
    int32_t *ids;
    size_t n_ids;
    EXPECT_OK(msa_tokenizer_encode(tokenizer, text, n, &ids, &n_ids));
    char *written = calloc(n_ids + 1, 16), *at = written;
    assert_non_null(written);
    for (size_t i = 0; i < n_ids; i++) at += sprintf(at, i ? " %d" : "%d", (int)ids[i]);
    assert_string_equal(written, expected);
    free(written);
    msa_free(ids);
}

void expect_ids(const msa_tokenizer *tokenizer, const char *text, const char *expected)
{
    expect_ids_n(tokenizer, text, strlen(text), expected);
}
