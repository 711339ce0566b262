/* Results go to standard output, talk goes to standard error; write errors are never lost. */
#ifndef CLI_OUTPUT_H
#define CLI_OUTPUT_H

#include "msa/status.h"

#include <stddef.h>
#include <stdio.h>

/* Name in front of complaints: "msa run". Borrowed. */
void cli_set_name(const char *name);

/* Talk on standard error, as it is. */
void cli_talk(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* One line "msa run: ..." on standard error; returns CLI_FAILED. */
int cli_complain(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* The library's last message as a complaint; returns CLI_FAILED. */
int cli_complain_library(msa_status status);

/* Result bytes on standard output. After the first failure everything is dropped, and
 * cli_output_failed() is 1: loops stop early. */
void cli_write(const void *bytes, size_t n_bytes);
void cli_print(const char *format, ...) __attribute__((format(printf, 1, 2)));
void cli_flush(void);
int cli_output_failed(void);

/* Flush and close standard output. Returns status, or CLI_FAILED after saying why output failed;
 * a reader that went away (head) is not worth a message. */
int cli_close_output(int status);

#endif
