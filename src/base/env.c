/* Environment variables; see env.h. */
#include "base/env.h"

#include "base/error.h"

#include <stdlib.h>

static const char *read_variable(const char *name)
{
    const char *value = getenv(name);
    return value && *value ? value : NULL;
}

const char *msa__env_backend(void)
{
    return read_variable("MSA_BACKEND");
}

const char *msa__env_cpu_isa(void)
{
    return read_variable("MSA_CPU_ISA");
}

const char *msa__env_cublaslt(void)
{
    return read_variable("MSA_CUBLASLT");
}

msa_status msa__env_threads(int32_t *n)
{
    const char *text = read_variable("MSA_THREADS");
    *n = 0;
    if (!text) return MSA_OK;
    char *end;
    long value = strtol(text, &end, 10);
    if (*end || value < 1 || value > 1024) {
        return MSA_FAIL(MSA_EINVAL, "environment: MSA_THREADS = %.32s, must be 1..1024", text);
    }
    *n = (int32_t)value;
    return MSA_OK;
}
