/* The tokenizer of made models: every byte is a token, then M3's added tokens. */
#ifndef MSA_MODEL_MAKE_TOKENIZER_H
#define MSA_MODEL_MAKE_TOKENIZER_H

#include "model/buffers.h"

#define MSA__MADE_FIRST_ADDED 256
#define MSA__MADE_BOS         (MSA__MADE_FIRST_ADDED + 19)
#define MSA__MADE_EOS         (MSA__MADE_FIRST_ADDED + 20)
#define MSA__MADE_VOCAB       320 /* 256 bytes, 61 added tokens, rows to spare as in M3 */

void msa__made_tokenizer(msa__text *text);        /* tokenizer.json */
void msa__made_tokenizer_config(msa__text *text); /* tokenizer_config.json */

#endif
