/* Small tokenizers for tests, made from parts of a tokenizer.json. */
#ifndef MSA_TESTS_TOKENIZER_FIXTURE_H
#define MSA_TESTS_TOKENIZER_FIXTURE_H

#include "model/tokenizer.h"

/* JSON texts; NULL: a part that does nothing. */
typedef struct tokenizer_parts {
    const char *tokens;        /* members of vocab behind the 256 bytes (id of byte b: b) */
    const char *merges;        /* items of merges */
    const char *added;         /* items of added_tokens */
    const char *normalizer;    /* a value */
    const char *pre_tokenizer; /* a value */
    const char *decoder;       /* a value */
    const char *model;         /* further members of model, a comma behind each */
} tokenizer_parts;

/* Text of a tokenizer.json, to be freed. */
char *tokenizer_text(const tokenizer_parts *parts);

/* Parse and build. */
msa_status tokenizer_from_text(msa_tokenizer **out, const char *text, size_t n);
msa_tokenizer *tokenizer_from_parts(tokenizer_parts parts); /* must succeed */

/* The text's ids, written "1 2 3", are expected. */
void expect_ids(const msa_tokenizer *tokenizer, const char *text, const char *expected);
void expect_ids_n(const msa_tokenizer *tokenizer, const char *text, size_t n, const char *expected);

/* A Split pre-tokenizer followed by a bare ByteLevel. */
#define SPLIT(pattern)                                                                             \
    "{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\",\"pattern\":{\"Regex\":"        \
    "\"" pattern "\"},\"behavior\":\"Isolated\",\"invert\":false}," BARE_BYTE_LEVEL "]}"
#define BARE_BYTE_LEVEL                                                                            \
    "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"trim_offsets\":true,\"use_regex\":"      \
    "false}"

#endif
