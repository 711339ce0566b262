/* Reading optional and typed members of a JSON object. */
#ifndef MSA_MODEL_JSON_OPTIONAL_H
#define MSA_MODEL_JSON_OPTIONAL_H

#include "base/error.h"
#include "model/json.h"

/* An integer member that must be there. */
#define TRY_INT(object, key, low, high, out)                                                       \
    do {                                                                                           \
        const msa__json *value_;                                                                   \
        MSA_TRY(msa__json_need(object, key, &value_));                                             \
        MSA_TRY(msa__json_int32(value_, low, high, out));                                          \
    } while (0)

/* Absent or null. */
static inline int32_t is_null(const msa__json *value)
{
    return !value || value->type == MSA__JSON_NULL;
}

/* An optional true or false; absent and null are `missing`. */
static inline msa_status optional_bool(const msa__json *object, const char *key, int32_t missing,
                                       int32_t *out)
{
    const msa__json *value = msa__json_get(object, key);
    *out = missing;
    return is_null(value) ? MSA_OK : msa__json_bool(value, out);
}

/* A number that must be there, above 0 and of sane size. */
static inline msa_status need_positive(const msa__json *object, const char *key, double *out)
{
    const msa__json *value;
    MSA_TRY(msa__json_need(object, key, &value));
    MSA_TRY(msa__json_double(value, out));
    if (*out > 0 && *out < 1e30) return MSA_OK;
    return msa__json_fail(value, MSA_EFORMAT, "must be above 0 and below 1e30");
}

/* A member that must be there and of one type. */
static inline msa_status need_typed(const msa__json *object, const char *key, msa__json_type type,
                                    const msa__json **value)
{
    MSA_TRY(msa__json_need(object, key, value));
    return msa__json_type_is(*value, type);
}

#endif
