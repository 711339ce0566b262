/* The attention of each layer in config.json: the list layer_types and the keys of the kinds it
 * names, docs/attention-kinds.md. */
#ifndef MSA_MODEL_CONFIG_ATTENTION_H
#define MSA_MODEL_CONFIG_ATTENTION_H

#include "model/config.h"

/* Read text.layer_types and the keys of its kinds, but for those of MSA. n_layers and the heads are
 * known. Errors: MSA_EFORMAT, MSA_EUNSUPPORTED naming the kinds there are. */
MSA_CHECK_RESULT msa_status msa__config_read_layer_types(msa__config *config,
                                                         const msa__json *text);

/* The name of a kind in that list. */
const char *msa__attention_name(msa__attention_kind kind);

#endif
