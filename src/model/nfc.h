/* Unicode normalization form C. */
#ifndef MSA_MODEL_NFC_H
#define MSA_MODEL_NFC_H

#include "model/buffers.h"

/* Whether the text holds anything that normalization could change (a quick test: no false
 * negatives). */
int32_t msa__nfc_may_change(const char *text, size_t n);

/* Append the normalized form of a valid UTF-8 text. */
MSA_CHECK_RESULT msa_status msa__nfc(msa__text *out, const char *text, size_t n);

#endif
