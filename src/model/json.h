/* JSON documents, parsed whole into a read-only tree in one allocation.
 *
 * Strict RFC 8259: valid UTF-8, no duplicate keys, nothing after the value. Size, depth and number
 * of values are bounded before anything is built. Numbers keep their spelling, because a chat
 * prompt prints integers of any size; keys keep their order; strings may contain U+0000.
 *
 * Messages name the file and the place: "DIR/config.json: text_config.head_dim = "big", must be …".
 */
#ifndef MSA_MODEL_JSON_H
#define MSA_MODEL_JSON_H

#include "msa/context.h"

#define MSA__JSON_MAX_DEPTH  256
#define MSA__JSON_MAX_VALUES (INT64_C(1) << 24)

typedef enum msa__json_type {
    MSA__JSON_NULL,
    MSA__JSON_FALSE,
    MSA__JSON_TRUE,
    MSA__JSON_NUMBER,
    MSA__JSON_STRING,
    MSA__JSON_ARRAY,
    MSA__JSON_OBJECT
} msa__json_type;

typedef struct msa__json msa__json;
struct msa__json {
    const msa__json *parent; /* NULL: the root */
    const msa__json *child;  /* first member or item */
    const msa__json *next;   /* sibling */
    const char *key;         /* of a member, NUL-terminated; NULL otherwise */
    const char *text;        /* a string's bytes or a number's spelling, NUL-terminated */
    uint32_t key_bytes, text_bytes;
    int32_t n_children;
    msa__json_type type;
};

#define MSA__JSON_EACH(item, container)                                                            \
    for (const msa__json *item = (container)->child; item; item = item->next)

/* Parse a text; name is what messages call it, and is copied. allocator NULL: the C library's.
 *
 * Ownership *root is owned: msa__json_free
 * Errors    MSA_EFORMAT name, line, column and rule; MSA_ENOMEM
 */
MSA_CHECK_RESULT msa_status msa__json_parse(const msa__json **root, const msa_allocator *allocator,
                                            const char *name, const char *text, size_t bytes);

/* Parse the file dir/file of at most max_bytes. MSA_EIO names a file that cannot be read. */
MSA_CHECK_RESULT msa_status msa__json_read(const msa__json **root, const msa_allocator *allocator,
                                           const char *dir, const char *file, size_t max_bytes);
void msa__json_free(const msa__json *root); /* NULL is allowed */

/* Member of an object; NULL when absent or when object is not an object. Linear in its members. */
const msa__json *msa__json_get(const msa__json *object, const char *key);
/* As above, but MSA_EFORMAT "… object.key is missing". */
MSA_CHECK_RESULT msa_status msa__json_need(const msa__json *object, const char *key,
                                           const msa__json **value);

/* Typed values; MSA_EFORMAT with place, value and rule. */
MSA_CHECK_RESULT msa_status msa__json_type_is(const msa__json *value, msa__json_type type);
MSA_CHECK_RESULT msa_status msa__json_int64(const msa__json *value, int64_t low, int64_t high,
                                            int64_t *out);
MSA_CHECK_RESULT msa_status msa__json_int32(const msa__json *value, int32_t low, int32_t high,
                                            int32_t *out);
MSA_CHECK_RESULT msa_status msa__json_double(const msa__json *value, double *out); /* finite */
MSA_CHECK_RESULT msa_status msa__json_bool(const msa__json *value, int32_t *out);  /* 0 or 1 */
/* A string without U+0000, borrowed from the document. */
MSA_CHECK_RESULT msa_status msa__json_string(const msa__json *value, const char **out);

/* An integer spelling: no fraction, no exponent. */
int32_t msa__json_is_integer(const msa__json *value);
int32_t msa__json_equals(const msa__json *value, const char *text); /* a string equal to text */

/* Record "name: path = value, rule" and return status. */
msa_status msa__json_fail(const msa__json *value, msa_status status, const char *rule, ...)
    __attribute__((format(printf, 3, 4)));

#endif
