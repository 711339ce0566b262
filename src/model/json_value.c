/* Typed access to JSON values, with messages that name file, place, value and rule; see json.h. */
#include "base/error.h"
#include "model/json_document.h"

#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const msa__json *msa__json_get(const msa__json *object, const char *key)
{
    if (!object || object->type != MSA__JSON_OBJECT) return NULL;
    size_t bytes = strlen(key);
    MSA__JSON_EACH(member, object)
    {
        if (member->key_bytes == bytes && !memcmp(member->key, key, bytes)) return member;
    }
    return NULL;
}

/* "text_config.layer_types[3]": written from the right end of the buffer towards its start. */
static const char *value_path(const msa__json *value, char *buffer, size_t bytes)
{
    char *begin = buffer + bytes - 1;
    *begin = '\0';
    for (; value->parent; value = value->parent) {
        char part[128];
        if (value->key) {
            (void)snprintf(part, sizeof(part), "%s%.100s", value->parent->parent ? "." : "",
                           value->key);
        } else {
            int64_t index = 0;
            for (const msa__json *v = value->parent->child; v != value; v = v->next) index++;
            (void)snprintf(part, sizeof(part), "[%lld]", (long long)index);
        }
        size_t n = strlen(part);
        if ((size_t)(begin - buffer) < n) break;
        begin -= n;
        memcpy(begin, part, n);
    }
    return begin;
}

msa_status msa__json_fail(const msa__json *value, msa_status status, const char *rule, ...)
{
    char path[200], text[80], rule_text[200];
    va_list list;
    va_start(list, rule);
    (void)vsnprintf(rule_text, sizeof(rule_text), rule, list);
    va_end(list);
    switch (value->type) {
    case MSA__JSON_NULL:
        strcpy(text, "null");
        break;
    case MSA__JSON_FALSE:
        strcpy(text, "false");
        break;
    case MSA__JSON_TRUE:
        strcpy(text, "true");
        break;
    case MSA__JSON_NUMBER:
        (void)snprintf(text, sizeof(text), "%.60s", value->text);
        break;
    case MSA__JSON_STRING:
        (void)snprintf(text, sizeof(text), "\"%.60s\"", value->text);
        break;
    case MSA__JSON_ARRAY:
        (void)snprintf(text, sizeof(text), "[%d items]", value->n_children);
        break;
    case MSA__JSON_OBJECT:
        strcpy(text, "{…}");
        break;
    }
    const char *place = value_path(value, path, sizeof(path));
    return MSA_FAIL(status, "%.150s: %s%s%s, %s", msa__json_document_of(value)->name, place,
                    *place ? " = " : "", text, rule_text);
}

msa_status msa__json_need(const msa__json *object, const char *key, const msa__json **value)
{
    char path[200];
    *value = msa__json_get(object, key);
    if (*value) return MSA_OK;
    MSA_TRY(msa__json_type_is(object, MSA__JSON_OBJECT));
    const char *place = value_path(object, path, sizeof(path));
    return MSA_FAIL(MSA_EFORMAT, "%.150s: %s%s%s is missing", msa__json_document_of(object)->name,
                    place, *place ? "." : "", key);
}

msa_status msa__json_type_is(const msa__json *value, msa__json_type type)
{
    static const char *const rules[] = {"must be null",     "must be false",    "must be true",
                                        "must be a number", "must be a string", "must be an array",
                                        "must be an object"};
    if (value->type == type) return MSA_OK;
    return msa__json_fail(value, MSA_EFORMAT, "%s", rules[type]);
}

int32_t msa__json_is_integer(const msa__json *value)
{
    return value->type == MSA__JSON_NUMBER && !strpbrk(value->text, ".eE");
}

int32_t msa__json_equals(const msa__json *value, const char *text)
{
    return value->type == MSA__JSON_STRING && strlen(text) == value->text_bytes &&
           !memcmp(value->text, text, value->text_bytes);
}

msa_status msa__json_int64(const msa__json *value, int64_t low, int64_t high, int64_t *out)
{
    if (msa__json_is_integer(value)) {
        errno = 0;
        long long number = strtoll(value->text, NULL, 10);
        if (errno == 0 && number >= low && number <= high) {
            *out = number;
            return MSA_OK;
        }
    }
    return msa__json_fail(value, MSA_EFORMAT, "must be an integer in %lld..%lld", (long long)low,
                          (long long)high);
}

msa_status msa__json_int32(const msa__json *value, int32_t low, int32_t high, int32_t *out)
{
    int64_t wide = 0;
    MSA_TRY(msa__json_int64(value, low, high, &wide));
    *out = (int32_t)wide;
    return MSA_OK;
}

msa_status msa__json_double(const msa__json *value, double *out)
{
    MSA_TRY(msa__json_type_is(value, MSA__JSON_NUMBER));
    double number = strtod(value->text, NULL);
    if (!isfinite(number)) return msa__json_fail(value, MSA_EFORMAT, "must be a finite number");
    *out = number;
    return MSA_OK;
}

msa_status msa__json_bool(const msa__json *value, int32_t *out)
{
    if (value->type != MSA__JSON_TRUE && value->type != MSA__JSON_FALSE) {
        return msa__json_fail(value, MSA_EFORMAT, "must be true or false");
    }
    *out = value->type == MSA__JSON_TRUE;
    return MSA_OK;
}

msa_status msa__json_string(const msa__json *value, const char **out)
{
    MSA_TRY(msa__json_type_is(value, MSA__JSON_STRING));
    if (strlen(value->text) != value->text_bytes) {
        return msa__json_fail(value, MSA_EFORMAT, "must not contain U+0000");
    }
    *out = value->text;
    return MSA_OK;
}
