/* RoPE's frequencies of a model. */
#ifndef MSA_MODEL_ROPE_FREQUENCIES_H
#define MSA_MODEL_ROPE_FREQUENCIES_H

#include "model/config.h"

#define MSA__MAX_ROPE_FREQUENCIES 256 /* head_dim is at most 512 */

/* [rotary_dim / 2] frequencies, scaled as the config says: what msa_rope takes as inv_freq. */
void msa__rope_frequencies(const msa__config *config, float *inv_freq);

#endif
