/* A command of the program: a table that says everything about it, and the function that does it.
 *
 * From the table come the parser, --help, the man page and shell completion (options.c, help.c,
 * man_page.c, completion.c): an option is described once.
 */
#ifndef CLI_COMMAND_H
#define CLI_COMMAND_H

#include <stddef.h>
#include <stdint.h>

/* Exit statuses; part of the interface, printed by every --help. */
#define CLI_OK          0
#define CLI_FAILED      1   /* a file, the input or the machine */
#define CLI_USAGE       2   /* the command line */
#define CLI_INTERRUPTED 130 /* Ctrl-C */

/* What a row holds, and the type of the member its value goes to. */
typedef enum cli_kind {
    CLI_GROUP,  /* a heading between rows: only the name */
    CLI_FLAG,   /* int32_t, 1 when given */
    CLI_COUNT,  /* int64_t; 64K = 65536 and 2M are understood; CLI_UNSET without an initial value */
    CLI_NUMBER, /* double; NAN without an initial value */
    CLI_CHOICE, /* int32_t, index of the word in metavar ("sparse|dense"); -1 without an initial one
                 */
    CLI_TEXT,   /* const char *; NULL without an initial value */
    CLI_FILE,   /* the same, completed as a file name */
    CLI_FOLDER  /* the same, completed as a folder name */
} cli_kind;

#define CLI_UNSET INT64_MIN

typedef struct cli_option {
    cli_kind kind;
    char letter;      /* -x, or 0 */
    const char *name; /* --name; of an argument: MODEL */
    const char *metavar;
    size_t offset;       /* of the member in the command's values */
    const char *initial; /* parsed like a value given by hand; NULL: see cli_kind */
    double min, max;     /* of a count or number */
    const char *help;
} cli_option;

typedef struct cli_command {
    const char *name;            /* "run", "bench attention" */
    const char *summary;         /* one line */
    const char *details;         /* paragraphs, separated by an empty line; NULL: none */
    const char *examples;        /* one a line; NULL: none */
    const cli_option *arguments; /* required, in order; ends with a zero row; NULL: none */
    const cli_option *options;   /* ends with a zero row; NULL: only --help */
    const char *list_title;      /* a list at the end that only the library knows; NULL: none */
    void (*list)(void (*row)(const char *name, const char *text));
    size_t values_bytes;
    int (*run)(const void *values); /* returns an exit status */
} cli_command;

/* NULL-terminated, in the order of `msa --help`. */
extern const cli_command *const cli_commands[];

#endif
