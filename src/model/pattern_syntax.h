/* Translation of a pattern's syntax; see pattern.h. */
#ifndef MSA_MODEL_PATTERN_SYNTAX_H
#define MSA_MODEL_PATTERN_SYNTAX_H

#include "model/buffers.h"

/* Append the PCRE2 form of an Oniguruma pattern.
 * Errors    MSA_EUNSUPPORTED construct and place; MSA_ENOMEM */
MSA_CHECK_RESULT msa_status msa__pattern_translate(msa__text *out, const char *pattern, size_t n);

#endif
