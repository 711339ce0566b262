/* Chat requests: any bytes give an error, or a prompt of valid UTF-8 that starts as every prompt
 * does. */
#include "fuzz/fuzz.h"

#include "model/utf8.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    static const char begin[] = "]~!b[]~b]system\n";
    char *text;
    size_t n;
    msa_status status = msa_chat_render((const char *)data, bytes, &text, &n);
    FUZZ_CHECK((status == MSA_OK) == (text != NULL));
    if (!text) return 0;
    FUZZ_CHECK(text[n] == '\0' && msa__utf8_check(text, n) == n);
    FUZZ_CHECK(n > strlen(begin) && memcmp(text, begin, strlen(begin)) == 0);
    msa_free(text);
    return 0;
}
