/* The progress display and the spelling of quantities; see progress.h. */
#include "progress.h"

#include <langinfo.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

static int bar_is_drawn;

double cli_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

int cli_is_terminal(int fd)
{
    return isatty(fd);
}

int cli_columns(void)
{
    struct winsize size;
    if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_col < 20) return 80;
    return size.ws_col;
}

const char *cli_grouped(int64_t value, char *text)
{
    char digits[32];
    int n = snprintf(digits, sizeof(digits), "%lld", (long long)value), out = 0;
    for (int i = 0; i < n; i++) {
        int left = n - i;
        if (i > 0 && left % 3 == 0 && digits[i - 1] != '-') text[out++] = ',';
        text[out++] = digits[i];
    }
    text[out] = '\0';
    return text;
}

const char *cli_bytes(double bytes, char *text)
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    int unit = 0;
    while (bytes >= 1023.95 && unit < 4) {
        bytes /= 1024;
        unit++;
    }
    snprintf(text, 32, unit == 0 || bytes >= 99.95 ? "%.0f %s" : "%.1f %s", bytes, units[unit]);
    return text;
}

const char *cli_duration(double seconds, char *text)
{
    int64_t whole = (int64_t)(seconds + 0.5);
    if (seconds < 0.0995) {
        snprintf(text, 32, "%.0f ms", seconds * 1e3);
    } else if (seconds < 9.95) {
        snprintf(text, 32, "%.1f s", seconds);
    } else if (whole < 60) {
        snprintf(text, 32, "%d s", (int)whole);
    } else if (whole < 3600) {
        snprintf(text, 32, "%d min %02d s", (int)(whole / 60), (int)(whole % 60));
    } else {
        snprintf(text, 32, "%lld h %02d min", (long long)(whole / 3600), (int)(whole / 60 % 60));
    }
    return text;
}

void cli_progress_begin(cli_progress *progress, const char *label, const char *unit, int32_t quiet)
{
    memset(progress, 0, sizeof(*progress));
    progress->label = label;
    progress->unit = unit;
    progress->quiet = quiet;
    progress->start_seconds = progress->drawn_seconds = cli_seconds();
    progress->first = -1;
}

void cli_progress_clear(void)
{
    if (!bar_is_drawn) return;
    fputs("\r\033[K", stderr);
    bar_is_drawn = 0;
}

static void draw_bar(const cli_progress *progress, double fraction, const char *numbers)
{
    int utf8 = strcmp(nl_langinfo(CODESET), "UTF-8") == 0;
    const char *full = utf8 ? "\xe2\x94\x81" : "=", *empty = utf8 ? "\xe2\x94\x80" : "-";
    int width = cli_columns() - (int)strlen(progress->label) - (int)strlen(numbers) - 12;
    if (width > 40) width = 40;
    fprintf(stderr, "\r%s ", progress->label);
    if (width >= 8) {
        int filled = (int)(fraction * width);
        for (int i = 0; i < width; i++) {
            if (i == filled) fputs("\033[2m", stderr);
            fputs(i < filled ? full : empty, stderr);
        }
        fputs("\033[0m ", stderr);
    }
    fprintf(stderr, "%3d %%  %s\033[K", (int)(fraction * 100), numbers);
    fflush(stderr);
    bar_is_drawn = 1;
}

/* Seconds left. Attention makes every token dearer than the one before, so the time taken is fitted
 * as a x + b x^2 through now and an earlier moment, with b >= 0: a straight line where cost is
 * even. */
static double seconds_left(cli_progress *progress, int64_t done, int64_t total, double elapsed)
{
    double x = (double)(done - progress->first), end = (double)(total - progress->first);
    double m = (double)progress->earlier.done, b = 0;
    if (m > 0 && x > m) b = (elapsed / x - progress->earlier.seconds / m) / (x - m);
    double a = elapsed / x - b * x;
    if (b < 0 || a < 0) {
        a = elapsed / x;
        b = 0;
    }
    if (x >= 1.5 * (double)progress->later.done) {
        progress->earlier = progress->later;
        progress->later.done = done - progress->first;
        progress->later.seconds = elapsed;
    }
    return a * (end - x) + b * (end * end - x * x);
}

/* "6,554 of 65,536 tokens  3,077/s  19 s left" */
static void describe(cli_progress *progress, int64_t done, int64_t total, double elapsed,
                     char *text, size_t text_bytes)
{
    char done_text[32], total_text[32], number[32], rate_text[48] = "", left_text[48] = "";
    double rate = elapsed > 0 ? (double)(done - progress->first) / elapsed : 0;
    if (rate > 0) {
        snprintf(rate_text, sizeof(rate_text), "  %s/s",
                 cli_grouped((int64_t)(rate + 0.5), number));
    }
    if (rate > 0 && done < total) {
        snprintf(left_text, sizeof(left_text), "  %s left",
                 cli_duration(seconds_left(progress, done, total, elapsed), number));
    }
    snprintf(text, text_bytes, "%s of %s %s%s%s", cli_grouped(done, done_text),
             cli_grouped(total, total_text), progress->unit, rate_text, left_text);
}

void cli_progress_update(cli_progress *progress, int64_t done, int64_t total)
{
    char numbers[192];
    if (progress->quiet || total <= 0) return;
    if (progress->first < 0) progress->first = done;
    double now = cli_seconds(), pause = now - progress->drawn_seconds;
    double fraction = (double)done / (double)total;
    int terminal = cli_is_terminal(STDERR_FILENO);
    if (done < total && pause < (terminal ? 0.1 : 0.5)) return;
    if (!terminal && (int32_t)(fraction * 10) <= progress->tenth) return;
    progress->tenth = (int32_t)(fraction * 10);
    progress->drawn_seconds = now;
    describe(progress, done, total, now - progress->start_seconds, numbers, sizeof(numbers));
    if (terminal && done >= total) {
        cli_progress_clear();
    } else if (terminal) {
        draw_bar(progress, fraction, numbers);
    } else {
        fprintf(stderr, "%s %3d %%  %s\n", progress->label, (int)(fraction * 100), numbers);
    }
}
