/* The option parser: one pass over the words, driven by a command's table.
 *
 * Accepted: --name VALUE, --name=VALUE, -x VALUE, -xVALUE, flags joined as -xy, and -- before
 * arguments that begin with a dash. A lone - is an argument (standard input).
 */
#include "options.h"

#include "help.h"
#include "output.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static int usage_error(const cli_command *command)
{
    cli_talk("Try 'msa %s --help'.\n", command->name);
    return CLI_USAGE;
}

static const cli_option *find_name(const cli_command *command, const char *name, size_t length)
{
    for (const cli_option *o = command->options; o && o->name; o++) {
        if (o->kind == CLI_GROUP) continue;
        if (strlen(o->name) == length && memcmp(o->name, name, length) == 0) return o;
    }
    return NULL;
}

static const cli_option *find_letter(const cli_command *command, char letter)
{
    for (const cli_option *o = command->options; o && o->name; o++) {
        if (o->kind != CLI_GROUP && o->letter == letter) return o;
    }
    return NULL;
}

static int32_t choice_index(const char *choices, const char *word)
{
    size_t length = strlen(word);
    for (int32_t index = 0;; index++) {
        size_t n = strcspn(choices, "|");
        if (n == length && memcmp(choices, word, n) == 0) return index;
        if (!choices[n]) return -1;
        choices += n + 1;
    }
}

int cli_parse_count(const char *word, int64_t *value)
{
    char *end;
    errno = 0;
    long long number = strtoll(word, &end, 10);
    if (end == word || errno || isspace((unsigned char)*word)) return 0;
    int64_t unit = 1;
    if (*end == 'K' || *end == 'k') unit = 1024;
    if (*end == 'M') unit = 1024 * 1024;
    if (unit > 1) end++;
    if (*end || number > INT64_MAX / unit || number < INT64_MIN / unit) return 0;
    *value = number * unit;
    return 1;
}

static int parse_number(const char *word, double *value)
{
    char *end;
    *value = strtod(word, &end);
    return end != word && !*end && isfinite(*value) && !isspace((unsigned char)*word);
}

/* Store a value, or return the rule that the word breaks, written into rule. */
static int store(const cli_option *option, const char *word, void *values, char *rule,
                 size_t rule_bytes)
{
    void *member = (char *)values + option->offset;
    double value = 0;
    switch (option->kind) {
    case CLI_COUNT:
        if (cli_parse_count(word, member)) {
            value = (double)*(int64_t *)member;
            if (value >= option->min && value <= option->max) return 1;
        }
        snprintf(rule, rule_bytes, "must be a whole number from %.0f to %.0f", option->min,
                 option->max);
        return 0;
    case CLI_NUMBER:
        if (parse_number(word, &value) && value >= option->min && value <= option->max) {
            *(double *)member = value;
            return 1;
        }
        snprintf(rule, rule_bytes, "must be a number from %g to %g", option->min, option->max);
        return 0;
    case CLI_CHOICE:
        *(int32_t *)member = choice_index(option->metavar, word);
        snprintf(rule, rule_bytes, "must be one of %s", option->metavar);
        return *(int32_t *)member >= 0;
    case CLI_TEXT:
    case CLI_FILE:
    case CLI_FOLDER:
        *(const char **)member = word;
        return 1;
    default:
        return 0;
    }
}

static void store_initial(const cli_option *option, void *values)
{
    void *member = (char *)values + option->offset;
    char rule[128];
    if (option->initial) {
        (void)store(option, option->initial, values, rule, sizeof(rule));
    } else if (option->kind == CLI_COUNT) {
        *(int64_t *)member = CLI_UNSET;
    } else if (option->kind == CLI_NUMBER) {
        *(double *)member = (double)NAN;
    } else if (option->kind == CLI_CHOICE) {
        *(int32_t *)member = -1;
    }
}

/* An option that takes a value: from behind the =, the rest of the word, or the next word. */
static int take_value(const cli_command *command, const cli_option *option, const char *word,
                      void *values)
{
    char rule[128];
    if (!word) {
        cli_complain("--%s needs a value: --%s %s", option->name, option->name, option->metavar);
        return usage_error(command);
    }
    if (!store(option, word, values, rule, sizeof(rule))) {
        cli_complain("--%s = \"%.64s\", %s", option->name, word, rule);
        return usage_error(command);
    }
    return CLI_PARSED;
}

static int unknown_option(const cli_command *command, const char *word)
{
    const char *known[64];
    size_t n = 0;
    for (const cli_option *o = command->options; o && o->name && n < 62; o++) {
        if (o->kind != CLI_GROUP) known[n++] = o->name;
    }
    known[n++] = "help";
    known[n] = NULL;
    const char *near = strncmp(word, "--", 2) == 0 ? cli_nearest(word + 2, known) : NULL;
    if (near) {
        cli_complain("unknown option %.64s; did you mean --%s?", word, near);
    } else {
        cli_complain("unknown option %.64s", word);
    }
    return usage_error(command);
}

/* One --name or --name=VALUE; *i moves when the value is the next word. */
static int parse_long(const cli_command *command, int n_words, char **words, int *i, void *values)
{
    const char *name = words[*i] + 2;
    size_t length = strcspn(name, "=");
    const char *value = name[length] ? name + length + 1 : NULL;
    const cli_option *option = find_name(command, name, length);
    if (!option) return unknown_option(command, words[*i]);
    if (option->kind == CLI_FLAG) {
        if (value) {
            cli_complain("--%s takes no value", option->name);
            return usage_error(command);
        }
        *(int32_t *)((char *)values + option->offset) = 1;
        return CLI_PARSED;
    }
    if (!value && *i + 1 < n_words) value = words[++*i];
    return take_value(command, option, value, values);
}

/* One word of letters: flags, the last of which may take a value. */
static int parse_letters(const cli_command *command, int n_words, char **words, int *i,
                         void *values)
{
    const char *letters = words[*i] + 1;
    for (; *letters; letters++) {
        const cli_option *option = find_letter(command, *letters);
        if (!option) return unknown_option(command, words[*i]);
        if (option->kind == CLI_FLAG) {
            *(int32_t *)((char *)values + option->offset) = 1;
            continue;
        }
        const char *value = letters[1] ? letters + 1 : NULL;
        if (!value && *i + 1 < n_words) value = words[++*i];
        return take_value(command, option, value, values);
    }
    return CLI_PARSED;
}

int cli_parse(const cli_command *command, int n_words, char **words, void *values)
{
    const cli_option *argument = command->arguments;
    int only_arguments = 0;
    char rule[128];
    for (const cli_option *o = command->options; o && o->name; o++) store_initial(o, values);
    for (int i = 0; i < n_words; i++) {
        const char *word = words[i];
        int status = CLI_PARSED;
        if (!only_arguments && strcmp(word, "--") == 0) {
            only_arguments = 1;
        } else if (!only_arguments && (!strcmp(word, "--help") || !strcmp(word, "-h"))) {
            cli_help_command(command);
            return CLI_OK;
        } else if (!only_arguments && word[0] == '-' && word[1] == '-') {
            status = parse_long(command, n_words, words, &i, values);
        } else if (!only_arguments && word[0] == '-' && word[1]) {
            status = parse_letters(command, n_words, words, &i, values);
        } else if (argument && argument->name) {
            (void)store(argument++, word, values, rule, sizeof(rule));
        } else {
            cli_complain("unexpected argument \"%.64s\"", word);
            status = usage_error(command);
        }
        if (status != CLI_PARSED) return status;
    }
    if (argument && argument->name) {
        cli_complain("%s is missing: %s", argument->name, argument->help);
        return usage_error(command);
    }
    return CLI_PARSED;
}

/* ---- did you mean ------------------------------------------------------------------------- */

#define MAX_WORD 32

/* Least number of inserted, deleted and replaced letters between two short words. */
static size_t edit_distance(const char *a, const char *b)
{
    size_t row[MAX_WORD + 1], n = strlen(b);
    for (size_t j = 0; j <= n; j++) row[j] = j;
    for (size_t i = 0; a[i]; i++) {
        size_t diagonal = row[0];
        row[0] = i + 1;
        for (size_t j = 0; j < n; j++) {
            size_t best = diagonal + (a[i] != b[j]);
            if (row[j + 1] + 1 < best) best = row[j + 1] + 1;
            if (row[j] + 1 < best) best = row[j] + 1;
            diagonal = row[j + 1];
            row[j + 1] = best;
        }
    }
    return row[n];
}

const char *cli_nearest(const char *word, const char *const *known)
{
    const char *best = NULL;
    size_t best_distance = 3;
    if (strlen(word) > MAX_WORD) return NULL;
    for (; *known; known++) {
        if (strlen(*known) > MAX_WORD) continue;
        size_t distance = edit_distance(word, *known);
        if (distance < best_distance && distance < strlen(*known)) {
            best = *known;
            best_distance = distance;
        }
    }
    return best;
}
