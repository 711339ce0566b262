/* The tokenizer of made models; see make_tokenizer.h. */
#include "model/make_tokenizer.h"

#include "model/tokenizer_writer.h"

void msa__made_tokenizer(msa__text *text)
{
    char bytes[256];
    msa__token_bytes tokens[256];
    for (int32_t i = 0; i < 256; i++) {
        bytes[i] = (char)i;
        tokens[i] = (msa__token_bytes){&bytes[i], 1};
    }
    msa__write_tokenizer(text, &(msa__tokenizer_parts){tokens, NULL, 256, 0, MSA__ADDED_M3});
}

void msa__made_tokenizer_config(msa__text *text)
{
    msa__write_tokenizer_config(text);
}
