/* The block of memory behind a JSON tree; json.c lays it out. */
#ifndef MSA_MODEL_JSON_DOCUMENT_H
#define MSA_MODEL_JSON_DOCUMENT_H

#include "model/json.h"

typedef struct msa__json_document {
    msa_allocator allocator;
    size_t bytes;       /* of this block */
    const char *name;   /* for messages */
    msa__json values[]; /* the first is the root */
} msa__json_document;

static inline msa__json_document *msa__json_document_of(const msa__json *value)
{
    while (value->parent) value = value->parent;
    return (msa__json_document *)((uintptr_t)value - offsetof(msa__json_document, values));
}

#endif
