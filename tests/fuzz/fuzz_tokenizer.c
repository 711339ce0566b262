/* Text: any bytes give ids that decode to the same bytes, or an error when they are not UTF-8. */
#include "fuzz/fuzz.h"

#include "model/utf8.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    static msa_tokenizer *tokenizer; /* lives as long as the program */
    const char *text = (const char *)data;
    char *decoded;
    int32_t *ids;
    size_t n_ids, n_decoded;
    if (!tokenizer) FUZZ_CHECK(msa_tokenizer_open(&tokenizer, FUZZ_TOKENIZER_DIR) == MSA_OK);
    msa_status status = msa_tokenizer_encode(tokenizer, text, bytes, &ids, &n_ids);
    FUZZ_CHECK(status == (msa__utf8_check(text, bytes) == bytes ? MSA_OK : MSA_EFORMAT));
    FUZZ_CHECK(msa_utf8_complete(text, bytes) <= bytes);
    if (status != MSA_OK) return 0;
    FUZZ_CHECK(msa_tokenizer_decode(tokenizer, ids, n_ids, &decoded, &n_decoded) == MSA_OK);
    FUZZ_CHECK(n_decoded == bytes && memcmp(decoded, text, bytes) == 0);
    msa_free(decoded);
    msa_free(ids);
    return 0;
}
