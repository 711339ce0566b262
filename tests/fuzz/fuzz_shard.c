/* Token shards: any bytes give an error, or documents that cover tokens of the vocabulary. */
#include "fuzz/fuzz.h"

#include "base/alloc.h"
#include "data/shard.h"
#include "model/safetensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    msa_safetensors *file;
    msa__shard shard;
    /* A mapped file begins at a page: its arrays are aligned as its header says. */
    uint8_t *copy = msa__default_allocator.alloc(NULL, bytes + 1, 64);
    FUZZ_CHECK(copy);
    for (size_t i = 0; i < bytes; i++) copy[i] = data[i];
    msa_status status =
        msa__safetensors_from_memory(&file, &msa__default_allocator, "fuzz", copy, bytes);
    if (status == MSA_OK && msa__shard_check(&shard, file) == MSA_OK) {
        FUZZ_CHECK(shard.n_documents >= 1 && shard.starts[0] == 0);
        FUZZ_CHECK(shard.starts[shard.n_documents] == shard.n_tokens);
        for (int64_t i = 0; i < shard.n_documents; i++) {
            FUZZ_CHECK(shard.starts[i] < shard.starts[i + 1]);
            for (int64_t k = shard.starts[i]; k < shard.starts[i + 1]; k++) {
                FUZZ_CHECK(shard.tokens[k] >= 0 && shard.tokens[k] < shard.vocab);
            }
        }
        msa__shard_close(&shard);
    }
    msa_free(copy);
    return 0;
}
