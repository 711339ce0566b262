/* Lines typed by a person, with editing and history where libedit was found. */
#ifndef CLI_LINE_INPUT_H
#define CLI_LINE_INPUT_H

#include "text.h"

typedef enum cli_line { CLI_LINE, CLI_LINE_END, CLI_LINE_INTERRUPTED } cli_line;

void cli_lines_open(const char *prompt); /* borrowed; shown on standard error */
void cli_lines_close(void);

/* Read one line without its end. CLI_LINE_END at the end of input (Ctrl-D), CLI_LINE_INTERRUPTED
 * after Ctrl-C, which drops what was typed. */
cli_line cli_read_line(cli_buffer *line);

#endif
