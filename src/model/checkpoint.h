/* All tensors of a model folder by name, over one file or many shards. */
#ifndef MSA_MODEL_CHECKPOINT_H
#define MSA_MODEL_CHECKPOINT_H

#include "model/names.h"
#include "msa/safetensors.h"

typedef struct msa__tensor_place {
    int32_t file;
    int32_t tensor; /* index in the file */
} msa__tensor_place;

typedef struct msa__checkpoint {
    msa_allocator allocator;
    msa_safetensors **files;
    int32_t n_files, file_capacity;
    msa__tensor_place *places; /* what the table's indices mean */
    int64_t n_tensors;
    msa__names names;
} msa__checkpoint;

/* Map model.safetensors, or the shards of model.safetensors.index.json. A tensor may stand in one
 * shard only, and every shard of the index's weight_map must hold what the map says. The index's
 * total_size is not looked at: M3's own is wrong.
 *
 * The kernel's default read-ahead suits both uses, streaming a layer's matrices and picking
 * experts, so the maps carry no advice.
 *
 * Errors    MSA_EIO, MSA_EFORMAT, MSA_ENOMEM
 */
MSA_CHECK_RESULT msa_status msa__checkpoint_open(msa__checkpoint **out,
                                                 const msa_allocator *allocator, const char *dir);
void msa__checkpoint_close(msa__checkpoint *checkpoint); /* NULL is allowed */

/* View of a tensor and the path of its file; *found 0 when there is none of that name. */
MSA_CHECK_RESULT msa_status msa__checkpoint_get(const msa__checkpoint *checkpoint, const char *name,
                                                msa_tensor *tensor, const char **path,
                                                int32_t *found);

#endif
