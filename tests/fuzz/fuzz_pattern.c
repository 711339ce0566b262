/* Pre-tokenizer patterns: the first line of the input is the pattern, the rest the text. Matches go
 * forward, stay inside the text and begin and end between characters. */
#include "fuzz/fuzz.h"

#include "model/pattern.h"
#include "model/utf8.h"

#include <string.h>

static void check_matches(const msa__pattern *pattern, msa__matcher *matcher, const char *text,
                          size_t n)
{
    msa__matches m = {0};
    for (size_t behind = 0; msa__pattern_next(pattern, matcher, text, n, &m) == MSA_OK;) {
        if (m.done) return;
        FUZZ_CHECK(m.begin >= behind && m.end >= m.begin && m.end <= n);
        FUZZ_CHECK(m.begin == n || ((unsigned char)text[m.begin] & 0xc0) != 0x80);
        FUZZ_CHECK(m.end == n || ((unsigned char)text[m.end] & 0xc0) != 0x80);
        behind = m.end;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    const char *input = (const char *)data;
    const char *line_end = memchr(input, '\n', bytes);
    if (!line_end || msa__utf8_check(input, bytes) < bytes) return 0;
    size_t n = (size_t)(line_end - input);
    msa__pattern *pattern;
    msa__matcher *matcher;
    if (msa__pattern_create(&pattern, input, n, 0) != MSA_OK) return 0;
    FUZZ_CHECK(msa__matcher_create(&matcher) == MSA_OK);
    check_matches(pattern, matcher, line_end + 1, bytes - n - 1);
    msa__matcher_destroy(matcher);
    msa__pattern_destroy(pattern);
    return 0;
}
