/* A conversion while it runs: the dense model, what it becomes, and where that is written. */
#ifndef MSA_CONVERT_CONVERSION_H
#define MSA_CONVERT_CONVERSION_H

#include "model/buffers.h"
#include "model/config.h"
#include "model/layout.h"
#include "model/weights.h"
#include "msa/convert.h"

typedef struct msa__conversion {
    msa_convert_args args; /* with defaults filled in */
    const msa__json *root; /* the source's config.json */
    msa__config source, target;
    msa__weights weights; /* the source's, mapped */
    uint8_t is_dense[MSA__MAX_LAYERS];
    msa_progress_fn progress;
    void *user;
} msa__conversion;

/* Refuse, by name, what cannot be converted. root and source have been read. */
MSA_CHECK_RESULT msa_status msa__conversion_check_source(const msa__conversion *conversion);

/* Fill in the defaults, and is_dense; refuse what is out of range. */
MSA_CHECK_RESULT msa_status msa__conversion_choose(msa__conversion *conversion);

/* config.json of the result. */
void msa__conversion_config(const msa__conversion *conversion, msa__text *text);

/* Dtype of an index tensor: that of the main branch's. */
msa_dtype msa__conversion_dtype(const msa__conversion *conversion, const msa__tensor_spec *spec);

/* First values of an index tensor: *data is owned, free() it. */
MSA_CHECK_RESULT msa_status msa__conversion_index_tensor(const msa__conversion *conversion,
                                                         const msa__tensor_spec *spec, void **data);

#endif
