/* Texts of config.json that tests change in one place. */
#ifndef MSA_TESTS_CONFIG_TEXT_H
#define MSA_TESTS_CONFIG_TEXT_H

#include "model/config.h"

/* The text with the first occurrence of `from`, which must exist, replaced; to be freed. */
char *config_with(const char *text, const char *from, const char *to);

msa_status config_parse(msa__config *config, const char *text);

/* A change that makes the text an error. */
typedef struct refusal {
    const char *from, *to;
    msa_status code;
    const char *message;
} refusal;

void expect_refusals(const char *base, const refusal *cases, size_t n);

#endif
