/* Sizes and names of element types. */
#include "msa/tensor.h"

size_t msa_dtype_bytes(msa_dtype dtype)
{
    switch (dtype) {
#define BYTES_CASE(name, value, bytes, text)                                                       \
    case value: return bytes;
        MSA_DTYPE_MAP(BYTES_CASE)
#undef BYTES_CASE
    default: return 0;
    }
}

const char *msa_dtype_name(msa_dtype dtype)
{
    switch (dtype) {
#define NAME_CASE(name, value, bytes, text)                                                        \
    case value: return text;
        MSA_DTYPE_MAP(NAME_CASE)
#undef NAME_CASE
    default: return "?";
    }
}
