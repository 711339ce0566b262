/* A checkpoint in memory that tests edit: read, rename, drop, replace, fuse, write in shards. */
#ifndef MSA_TESTS_TENSORS_H
#define MSA_TESTS_TENSORS_H

#include "model/folder.h"
#include "msa/safetensors.h"

typedef struct named_tensor {
    char name[160];
    msa_dtype dtype;
    int32_t n_dims;
    int64_t shape[MSA_MAX_DIMS];
    size_t bytes;
    unsigned char *data; /* owned */
} named_tensor;

typedef struct tensor_set {
    named_tensor *items;
    int64_t n, capacity;
} tensor_set;

tensor_set tensors_read(const char *dir); /* dir/model.safetensors */
void tensors_free(tensor_set *set);

named_tensor *tensors_find(const tensor_set *set, const char *name); /* must exist */
void tensors_drop(tensor_set *set, const char *name);
/* A zero-filled tensor at the end. */
named_tensor *tensors_add(tensor_set *set, const char *name, msa_dtype dtype, int32_t n_dims,
                          const int64_t *shape);

/* Replace the first occurrence in a name of 160 bytes, if there is one. */
void replace_in_name(char *name, const char *from, const char *to);

/* Write model.safetensors, or n_shards files with an index. */
void tensors_write(const tensor_set *set, const folder *f, int32_t n_shards);

/* The set under transformers names, gate and up fused and experts stacked; prefix of the text model
 * is "model.language_model." or, of a text-only export, "model.". */
tensor_set tensors_to_transformers(const tensor_set *released, const char *prefix);

#endif
