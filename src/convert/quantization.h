/* A quantisation while it runs: the model, the config it gets, and what is reported. */
#ifndef MSA_CONVERT_QUANTIZATION_H
#define MSA_CONVERT_QUANTIZATION_H

#include "model/buffers.h"
#include "model/config.h"
#include "model/layout.h"
#include "model/weights.h"
#include "msa/convert.h"

typedef struct msa__quantization {
    msa_quantize_args args;
    const msa__json *root; /* the source's config.json */
    msa__config source, target;
    msa__weights weights; /* the source's, mapped */
    msa_quantize_info info;
    msa_progress_fn progress;
    void *user;
} msa__quantization;

/* Refuse, by name, a model that cannot be quantised. source has been read. */
MSA_CHECK_RESULT msa_status msa__quantization_check_source(const msa__quantization *quantization);

/* Refuse a tensor of the source's files that the result would lack. weights are open. */
MSA_CHECK_RESULT msa_status msa__quantization_check_tensors(const msa__quantization *quantization);

/* Refuse names in args.keep that are no module of the model. */
MSA_CHECK_RESULT msa_status msa__quantization_check_keep(const msa__quantization *quantization);

/* config.json of the result: the source's members, then quantization_config. */
void msa__quantization_config(const msa__quantization *quantization, msa__text *text);

#endif
