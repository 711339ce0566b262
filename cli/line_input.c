/* Line input; see line_input.h. Only this file knows libedit. */
#include "line_input.h"

#include "interrupt.h"
#include "output.h"
#include "progress.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#ifdef MSA_HAVE_LIBEDIT
#    include <histedit.h>

static EditLine *editor;
static History *history_list;
#endif

static const char *prompt_text = "";
static int is_terminal;

#ifdef MSA_HAVE_LIBEDIT
static char *editor_prompt(EditLine *unused)
{
    (void)unused;
    return (char *)(uintptr_t)prompt_text;
}

static void open_editor(void)
{
    HistEvent event;
    editor = el_init("msa", stdin, stderr, stderr);
    history_list = history_init();
    if (!editor) return;
    el_set(editor, EL_PROMPT, editor_prompt);
    el_set(editor, EL_EDITOR, "emacs");
    if (!history_list) return;
    history(history_list, &event, H_SETSIZE, 1000);
    el_set(editor, EL_HIST, history, history_list);
}

static const char *edited_line(int *length)
{
    HistEvent event;
    const char *text = el_gets(editor, length);
    if (text && *length > 1 && history_list) history(history_list, &event, H_ENTER, text);
    return text;
}
#endif

void cli_lines_open(const char *prompt)
{
    prompt_text = prompt;
    is_terminal = cli_is_terminal(STDIN_FILENO) && cli_is_terminal(STDERR_FILENO);
#ifdef MSA_HAVE_LIBEDIT
    if (is_terminal) open_editor();
#endif
}

void cli_lines_close(void)
{
#ifdef MSA_HAVE_LIBEDIT
    if (editor) el_end(editor);
    if (history_list) history_end(history_list);
    editor = NULL;
    history_list = NULL;
#endif
}

static cli_line without_line(void)
{
    if (!cli_interrupted()) return CLI_LINE_END;
    cli_interrupt_clear();
    clearerr(stdin);
    return CLI_LINE_INTERRUPTED;
}

cli_line cli_read_line(cli_buffer *line)
{
    cli_buffer_clear(line);
#ifdef MSA_HAVE_LIBEDIT
    if (editor) {
        int length = 0;
        const char *text = edited_line(&length);
        if (!text || length <= 0) return without_line();
        if (text[length - 1] == '\n') length--;
        return cli_buffer_add(line, text, (size_t)length) ? CLI_LINE : CLI_LINE_END;
    }
#endif
    if (is_terminal) cli_talk("%s", prompt_text);
    for (int c; (c = getc(stdin)) != EOF;) {
        char byte = (char)c;
        if (c == '\n') return cli_buffer_add(line, "", 0) ? CLI_LINE : CLI_LINE_END;
        if (!cli_buffer_add(line, &byte, 1)) return CLI_LINE_END;
    }
    return line->n > 0 && !cli_interrupted() ? CLI_LINE : without_line();
}
