/* tokenizer.json: any document gives an error, or a tokenizer whose ids are tokens. */
#include "fuzz/fuzz.h"

#include "model/tokenizer.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    static const char text[] =
        " It's 12345 \xE4\xBD\xA0\xE5\xA5\xBD\r\n\n  <x>e\xCC\x81 aaaaaaaaaaaaaaa"
        "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa]~b]";
    const msa__json *root;
    msa_tokenizer *tokenizer;
    if (msa__json_parse(&root, NULL, "fuzz", (const char *)data, bytes) != MSA_OK) return 0;
    msa_status status = msa__tokenizer_create(&tokenizer, root);
    FUZZ_CHECK((status == MSA_OK) == (tokenizer != NULL));
    msa__json_free(root);
    if (!tokenizer) return 0;
    int32_t *ids;
    size_t n_ids, n_bytes;
    char *decoded;
    if (msa_tokenizer_encode(tokenizer, text, sizeof(text) - 1, &ids, &n_ids) == MSA_OK) {
        FUZZ_CHECK(msa_tokenizer_decode(tokenizer, ids, n_ids, &decoded, &n_bytes) == MSA_OK);
        msa_free(decoded);
        msa_free(ids);
    }
    msa_tokenizer_close(tokenizer);
    return 0;
}
