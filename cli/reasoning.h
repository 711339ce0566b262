/* Answers apart from reasoning: text between <mm:think> and </mm:think> is shown dimmed on standard
 * error, the rest is the result. Markers arrive in pieces and are matched as text.
 */
#ifndef CLI_REASONING_H
#define CLI_REASONING_H

#include <stddef.h>
#include <stdint.h>

typedef struct cli_reasoning {
    int32_t inside; /* between the markers */
    int32_t shown;  /* something of the reasoning was shown */
    char held[16];  /* the beginning of what may become a marker */
    size_t n_held;
    int32_t skip_breaks; /* drop line breaks that follow a marker */
} cli_reasoning;

void cli_reasoning_begin(cli_reasoning *reasoning, int32_t inside);
void cli_reasoning_show(cli_reasoning *reasoning, const char *text, size_t n_bytes);
void cli_reasoning_end(cli_reasoning *reasoning);

#endif
