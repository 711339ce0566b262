/* Reading optional and typed members of a JSON object. */
#ifndef MSA_MODEL_JSON_OPTIONAL_H
#define MSA_MODEL_JSON_OPTIONAL_H

#include "base/error.h"
#include "model/json.h"

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

/* A member that must be there and of one type. */
static inline msa_status need_typed(const msa__json *object, const char *key, msa__json_type type,
                                    const msa__json **value)
{
    MSA_TRY(msa__json_need(object, key, value));
    return msa__json_type_is(*value, type);
}

#endif
