/* RULER's string match. */
#include "msa/tasks.h"

#include <string.h>

static char lower(char c)
{
    return c >= 'A' && c <= 'Z' ? (char)(c + ('a' - 'A')) : c;
}

static int contains(const char *text, size_t text_bytes, const char *part)
{
    size_t n = strlen(part);
    for (size_t at = 0; n <= text_bytes && at <= text_bytes - n; at++) {
        size_t i = 0;
        while (i < n && lower(text[at + i]) == lower(part[i])) i++;
        if (i == n) return 1;
    }
    return 0;
}

double msa_answer_score(const char *output, size_t output_bytes, const char *const *references,
                        int32_t n_references, int32_t any_one)
{
    int32_t n_found = 0;
    for (int32_t i = 0; i < n_references; i++) {
        n_found += contains(output, output_bytes, references[i]);
    }
    if (n_references < 1) return 0;
    return any_one ? n_found > 0 : (double)n_found / n_references;
}
