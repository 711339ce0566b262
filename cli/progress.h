/* Progress of something long, on standard error: a bar with the time left on a terminal, otherwise
 * a plain line at a tenth, at most two a second, and one at the end.
 */
#ifndef CLI_PROGRESS_H
#define CLI_PROGRESS_H

#include <stdint.h>

typedef struct cli_progress {
    const char *label; /* "reading" */
    const char *unit;  /* "tokens" */
    int32_t quiet;     /* 1: say nothing */
    double start_seconds, drawn_seconds;
    int64_t first; /* done when it began: not counted in the rate */
    int32_t tenth; /* last tenth that got a plain line */
    struct {
        int64_t done;
        double seconds;
    } earlier, later; /* two moments of the past, for the time left */
} cli_progress;

void cli_progress_begin(cli_progress *progress, const char *label, const char *unit, int32_t quiet);
void cli_progress_update(cli_progress *progress, int64_t done, int64_t total);

/* Remove the bar from the terminal, so that other text can be written; the next update redraws it.
 */
void cli_progress_clear(void);

/* Seconds of a clock that only goes forward. */
double cli_seconds(void);

/* 1234567 as "1,234,567", in text (at least 32 bytes); returns text. */
const char *cli_grouped(int64_t value, char *text);

/* 13579 bytes as "13.3 KiB", in text (at least 32 bytes); returns text. */
const char *cli_bytes(double bytes, char *text);

/* 71.3 as "1 min 11 s", 7.13 as "7.1 s", in text (at least 32 bytes); returns text. */
const char *cli_duration(double seconds, char *text);

/* Columns of the terminal behind standard error, 80 when unknown; whether it is a terminal. */
int cli_columns(void);
int cli_is_terminal(int fd);

#endif
