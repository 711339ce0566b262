/* See train_keys.h. */
#include "train/train_keys.h"

#include "base/error.h"

#include <stdio.h>
#include <string.h>

/* Index of a string in a list "a|b|c", -1 when it is not there. */
static int32_t find_word(const char *words, const msa__json *value)
{
    int32_t index = 0;
    for (const char *at = words;; at++, index++) {
        const char *end = strchr(at, '|');
        size_t bytes = end ? (size_t)(end - at) : strlen(at);
        if (value->type == MSA__JSON_STRING && value->text_bytes == bytes &&
            !memcmp(value->text, at, bytes)) {
            return index;
        }
        if (!end) return -1;
        at = end;
    }
}

static msa_status read_number(const msa__json *value, const msa__key *key, double *out)
{
    double x;
    MSA_TRY(msa__json_double(value, &x));
    if (x < key->low || x > key->high) {
        return msa__json_fail(value, MSA_EFORMAT, "must be in %g..%g", key->low, key->high);
    }
    *out = x;
    return MSA_OK;
}

static msa_status read_text(const msa__json *value, const char **out)
{
    const char *text;
    MSA_TRY(msa__json_string(value, &text));
    if (!*text) return msa__json_fail(value, MSA_EFORMAT, "must not be empty");
    *out = text;
    return MSA_OK;
}

static msa_status read_value(const msa__json *value, const msa__key *key, void *out)
{
    void *to = (char *)out + key->offset;
    int32_t word;
    switch (key->kind) {
    case MSA__KEY_COUNT:
        return msa__json_int64(value, (int64_t)key->low, (int64_t)key->high, to);
    case MSA__KEY_NUMBER:
        return read_number(value, key, to);
    case MSA__KEY_FLAG:
        return msa__json_bool(value, to);
    case MSA__KEY_WORD:
        word = find_word(key->words, value);
        if (word < 0) return msa__json_fail(value, MSA_EFORMAT, "must be one of %s", key->words);
        memcpy(to, &word, sizeof(word));
        return MSA_OK;
    case MSA__KEY_TEXT:
        return read_text(value, to);
    case MSA__KEY_OBJECT:
    case MSA__KEY_LIST:
        MSA_TRY(msa__json_type_is(value,
                                  key->kind == MSA__KEY_LIST ? MSA__JSON_ARRAY : MSA__JSON_OBJECT));
        memcpy(to, &value, sizeof(value));
        return MSA_OK;
    case MSA__KEY_TABLE:
        break;
    }
    return msa__keys_read(value, key->table, out);
}

static msa_status fail_unknown(const msa__json *member, const msa__key *table)
{
    char names[400] = "";
    size_t used = 0;
    for (const msa__key *key = table; key->name; key++) {
        if (used + strlen(key->name) + 3 > sizeof(names)) break;
        used += (size_t)snprintf(names + used, sizeof(names) - used, "%s%s", used ? ", " : "",
                                 key->name);
    }
    return msa__json_fail(member, MSA_EFORMAT, "is not a key; known are %s", names);
}

msa_status msa__keys_read(const msa__json *object, const msa__key *table, void *out)
{
    MSA_TRY(msa__json_type_is(object, MSA__JSON_OBJECT));
    MSA__JSON_EACH(member, object)
    {
        const msa__key *key = table;
        while (key->name && strcmp(key->name, member->key) != 0) key++;
        if (!key->name) return fail_unknown(member, table);
        MSA_TRY(read_value(member, key, out));
    }
    return MSA_OK;
}
