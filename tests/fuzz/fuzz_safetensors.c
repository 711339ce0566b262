/* Safetensors: any bytes give an error or a file whose every tensor lies inside it. */
#include "fuzz/fuzz.h"

#include "base/alloc.h"
#include "model/safetensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    msa_safetensors *file;
    msa_status status =
        msa__safetensors_from_memory(&file, &msa__default_allocator, "fuzz", data, bytes);
    FUZZ_CHECK((status == MSA_OK) == (file != NULL));
    if (!file) return 0;
    for (int64_t i = 0; i < msa_safetensors_count(file); i++) {
        msa_tensor t;
        FUZZ_CHECK(msa_safetensors_find(file, msa_safetensors_name(file, i)) == i);
        if (msa_safetensors_get(file, i, &t) != MSA_OK || !t.data) continue;
        size_t n = msa_dtype_bytes(t.dtype);
        for (int32_t k = 0; k < t.n_dims; k++) n *= (size_t)t.shape[k];
        const uint8_t *first = t.data;
        FUZZ_CHECK(n > 0 && first >= data && n <= bytes && first + n <= data + bytes);
    }
    msa_safetensors_close(file);
    return 0;
}
