/* The regular expressions that cut text into pieces before byte-pair encoding.
 *
 * tokenizer.json holds patterns for Oniguruma; we match with PCRE2. What both understand alike is
 * passed on, what differs is translated (\s, \w, \p{…}), and what cannot be is refused by name.
 */
#ifndef MSA_MODEL_PATTERN_H
#define MSA_MODEL_PATTERN_H

#include "model/buffers.h"

typedef struct msa__pattern msa__pattern; /* immutable: any number of threads match with it */

/* Compile a pattern; literal: the text itself is searched for.
 * Errors    MSA_EUNSUPPORTED a construct, by name; MSA_ENOMEM */
MSA_CHECK_RESULT msa_status msa__pattern_create(msa__pattern **out, const char *pattern, size_t n,
                                                int32_t literal);
void msa__pattern_destroy(msa__pattern *pattern);

/* Working memory of one thread, for any pattern. */
typedef struct msa__matcher msa__matcher;
MSA_CHECK_RESULT msa_status msa__matcher_create(msa__matcher **out);
void msa__matcher_destroy(msa__matcher *matcher);

/* Where the matches of a pattern lie in a text; all zero before the first call. */
typedef struct msa__matches {
    size_t begin, end; /* the match */
    size_t from;       /* where the search goes on */
    int32_t n_matches;
    int32_t done; /* no more matches */
} msa__matches;

/* The next match in a valid UTF-8 text. An empty match right behind the last one does not count.
 * Errors    MSA_EUNSUPPORTED the pattern needs too many steps; MSA_ENOMEM */
MSA_CHECK_RESULT msa_status msa__pattern_next(const msa__pattern *pattern, msa__matcher *matcher,
                                              const char *text, size_t n, msa__matches *matches);

#endif
