/* Splitting a stream of text at the reasoning markers; see reasoning.h. */
#include "reasoning.h"

#include "output.h"
#include "progress.h"
#include "text.h"

#include <string.h>
#include <unistd.h>

static const char begin_marker[] = "<mm:think>";
static const char end_marker[] = "</mm:think>";

void cli_reasoning_begin(cli_reasoning *reasoning, int32_t inside)
{
    memset(reasoning, 0, sizeof(*reasoning));
    reasoning->inside = inside;
    reasoning->skip_breaks = 1;
}

/* Text that is certainly no marker. */
static void show(cli_reasoning *reasoning, const char *text, size_t n_bytes)
{
    while (reasoning->skip_breaks && n_bytes > 0 && *text == '\n') {
        text++;
        n_bytes--;
    }
    if (n_bytes == 0) return;
    reasoning->skip_breaks = 0;
    if (!reasoning->inside) {
        cli_write_text(text, n_bytes);
        return;
    }
    int terminal = cli_is_terminal(STDERR_FILENO);
    if (terminal && !reasoning->shown) cli_talk("\033[2m");
    reasoning->shown = 1;
    cli_talk_text(text, n_bytes);
}

/* Leave the reasoning: end the dim text and the line. */
static void leave(cli_reasoning *reasoning)
{
    if (reasoning->shown) cli_talk(cli_is_terminal(STDERR_FILENO) ? "\033[0m\n" : "\n");
    reasoning->shown = 0;
    reasoning->inside = 0;
}

/* What held became: 1 a whole marker (obeyed), 0 the beginning of one, -1 neither. */
static int match_marker(cli_reasoning *reasoning)
{
    size_t n = reasoning->n_held;
    int may_begin = strncmp(reasoning->held, begin_marker, n) == 0;
    int may_end = strncmp(reasoning->held, end_marker, n) == 0;
    if (may_begin && n == sizeof(begin_marker) - 1) {
        reasoning->inside = 1;
    } else if (may_end && n == sizeof(end_marker) - 1) {
        leave(reasoning);
    } else {
        return may_begin || may_end ? 0 : -1;
    }
    reasoning->n_held = 0;
    reasoning->skip_breaks = 1;
    return 1;
}

void cli_reasoning_show(cli_reasoning *reasoning, const char *text, size_t n_bytes)
{
    const char *end = text + n_bytes;
    while (text < end) {
        if (reasoning->n_held == 0) { /* only '<' begins a marker */
            const char *next = memchr(text, '<', (size_t)(end - text));
            if (!next) next = end;
            show(reasoning, text, (size_t)(next - text));
            text = next;
            if (text == end) return;
        }
        reasoning->held[reasoning->n_held++] = *text++;
        if (match_marker(reasoning) < 0) {
            text--; /* the byte that broke the match may begin another */
            show(reasoning, reasoning->held, reasoning->n_held - 1);
            reasoning->n_held = 0;
        }
    }
}

void cli_reasoning_end(cli_reasoning *reasoning)
{
    show(reasoning, reasoning->held, reasoning->n_held);
    reasoning->n_held = 0;
    leave(reasoning);
}
