/* OUTPUT/log.jsonl: one JSON object a line, for every logged step, validation and end of a stage.
 */
#ifndef MSA_TRAIN_LOG_H
#define MSA_TRAIN_LOG_H

#include "model/buffers.h"

typedef struct msa__log msa__log;

/* Open for appending; lines of steps after `step`, from a run that was cut off, are dropped.
 * Ownership *out is owned: msa__log_close. MSA_EIO, MSA_ENOMEM */
MSA_CHECK_RESULT msa_status msa__log_open(msa__log **out, const char *output, int64_t step);
void msa__log_close(msa__log *log); /* NULL is allowed */

/* A line is built in the log: begin, members, end, which writes it. */
void msa__log_begin(msa__log *log, const char *kind, int64_t step);
void msa__log_count(msa__log *log, const char *key, int64_t value);
void msa__log_number(msa__log *log, const char *key, double value); /* not finite: null */
void msa__log_text(msa__log *log, const char *key, const char *value);
void msa__log_numbers(msa__log *log, const char *key, const double *values, int64_t n);
MSA_CHECK_RESULT msa_status msa__log_end(msa__log *log);

#endif
