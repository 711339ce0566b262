/* JSON values in the spelling of Python, which chat templates use. */
#ifndef MSA_MODEL_PYTHON_TEXT_H
#define MSA_MODEL_PYTHON_TEXT_H

#include "model/json.h"
#include "model/buffers.h"

/* Append a number as str() and json.dumps() print it: an integer in full; any other as the shortest
 * digits that read back to the same double (3.0, 100000.0, 1e+16, 1e-05, -0.0).
 * Errors    MSA_EFORMAT a number beyond the range of double; MSA_ENOMEM */
MSA_CHECK_RESULT msa_status msa__python_number(msa__text *out, const msa__json *number);

/* Append a value as str(value) prints it: a string as it is, within containers as a literal. */
MSA_CHECK_RESULT msa_status msa__python_str(msa__text *out, const msa__json *value);

/* Whether a value counts as true: null, false, zero and what is empty do not; NULL (absent)
 * neither. */
int32_t msa__python_true(const msa__json *value);

/* Append a value as json.dumps(value, ensure_ascii=False) prints it. */
MSA_CHECK_RESULT msa_status msa__python_json(msa__text *out, const msa__json *value);

/* Append what stands before a member's value: its key and a colon. */
void msa__python_json_key(msa__text *out, const msa__json *member);

#endif
