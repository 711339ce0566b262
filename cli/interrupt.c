/* The handler of SIGINT; see interrupt.h. */
#define _POSIX_C_SOURCE 200809L
#include "interrupt.h"

#include <signal.h>
#include <string.h>
#include <time.h>

static volatile sig_atomic_t interrupted, since; /* seconds of the clock */

static sig_atomic_t now(void)
{
    struct timespec time;
    (void)clock_gettime(CLOCK_MONOTONIC, &time);
    return (sig_atomic_t)time.tv_sec;
}

/* One wish to stop can arrive twice at once: a program that passes it on sends it to the process and
 * to its group. */
static void on_interrupt(int number)
{
    if (interrupted && now() - since > 1) {
        signal(number, SIG_DFL);
        raise(number);
    }
    if (!interrupted) since = now();
    interrupted = 1;
}

void cli_interrupt_catch(void)
{
    struct sigaction action;
    memset(&action, 0, sizeof(action));
    action.sa_handler = on_interrupt; /* no SA_RESTART: a waiting read returns */
    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, NULL);
}

int cli_interrupted(void)
{
    return interrupted;
}

void cli_interrupt_clear(void)
{
    interrupted = 0;
}
