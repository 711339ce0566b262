/* The two streams of the program; see output.h. */
#include "output.h"

#include "command.h"
#include "progress.h"

#include <errno.h>
#include <stdarg.h>
#include <string.h>

static const char *program_name = "msa";
static int output_error; /* errno of the first failed write; 0: none */

void cli_set_name(const char *name)
{
    program_name = name;
}

void cli_talk(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    cli_progress_clear();
    vfprintf(stderr, format, args);
    va_end(args);
}

int cli_complain(const char *format, ...)
{
    va_list args;
    cli_progress_clear();
    cli_flush();
    fprintf(stderr, "%s: ", program_name);
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fputc('\n', stderr);
    return CLI_FAILED;
}

int cli_complain_library(msa_status status)
{
    const char *message = msa_last_error();
    return cli_complain("%s", *message ? message : msa_status_text(status));
}

static void note_failure(int failed)
{
    if (failed && !output_error) output_error = errno ? errno : EIO;
}

void cli_write(const void *bytes, size_t n_bytes)
{
    if (output_error || n_bytes == 0) return;
    note_failure(fwrite(bytes, 1, n_bytes, stdout) != n_bytes);
}

void cli_print(const char *format, ...)
{
    va_list args;
    if (output_error) return;
    va_start(args, format);
    note_failure(vprintf(format, args) < 0);
    va_end(args);
}

void cli_flush(void)
{
    if (!output_error) note_failure(fflush(stdout) != 0);
}

int cli_output_failed(void)
{
    return output_error != 0;
}

int cli_close_output(int status)
{
    cli_flush();
    int closed = fclose(stdout) == 0;
    if (!output_error) note_failure(!closed);
    if (!output_error) return status;
    if (output_error != EPIPE) cli_complain("writing the output: %s", strerror(output_error));
    return status == CLI_OK ? CLI_FAILED : status;
}
