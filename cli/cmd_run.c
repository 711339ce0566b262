/* msa run: read a prompt, generate text, say how fast. */
#include "conversation.h"
#include "interrupt.h"
#include "output.h"
#include "progress.h"
#include "runtime.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

typedef struct run_options {
    const char *model, *prompt, *file, *system, *session, *stats;
    int64_t n_tokens;
    int32_t chat, thinking, ignore_stop, quiet;
    cli_model_options engine;
} run_options;

/* The prompt's text: the file, then -p. */
static int read_prompt(const run_options *o, cli_buffer *prompt)
{
    if (o->file && !cli_read_file(prompt, o->file)) return CLI_FAILED;
    if (o->prompt && !cli_buffer_add(prompt, o->prompt, strlen(o->prompt))) {
        return cli_complain("out of memory");
    }
    if (prompt->n > 0 || (o->session && !o->file && !o->prompt)) return CLI_OK;
    if (o->file) return cli_complain("%s: the prompt is empty", o->file);
    if (o->prompt) return cli_complain("the prompt is empty");
    cli_complain("no prompt: give -p TEXT or -f FILE");
    cli_talk("Try 'msa run --help'.\n");
    return CLI_USAGE;
}

/* With --chat the prompt becomes a user's turn. */
static int wrap_as_chat(const run_options *o, cli_buffer *prompt)
{
    char *text = NULL;
    size_t n_bytes = 0;
    cli_buffer messages = {0};
    int status = cli_check_chat(o->model);
    if (status != CLI_OK) return status;
    if ((o->system && !cli_add_message(&messages, "system", o->system, strlen(o->system))) ||
        !cli_add_message(&messages, "user", prompt->data, prompt->n)) {
        status = cli_complain("out of memory");
    }
    if (status == CLI_OK) {
        status = cli_render(&messages, o->thinking < 0 ? 0 : o->thinking, &text, &n_bytes);
    }
    if (status == CLI_OK) {
        cli_buffer_clear(prompt);
        if (!cli_buffer_add(prompt, text, n_bytes)) status = cli_complain("out of memory");
    }
    msa_free(text);
    cli_buffer_free(&messages);
    return status;
}

static int tokenize(const cli_runtime *runtime, const run_options *o, const cli_buffer *prompt,
                    int32_t **tokens, size_t *n_tokens)
{
    msa_status status =
        msa_tokenizer_encode(runtime->tokenizer, prompt->data, prompt->n, tokens, n_tokens);
    if (status == MSA_OK) return CLI_OK;
    const char *source = o->file && strcmp(o->file, "-") ? o->file : "the prompt";
    return cli_complain("%s: %s", source, msa_last_error());
}

/* Room for a saved session: the file is at least as large as the cache it holds. */
static int64_t saved_tokens(const cli_runtime *runtime, const char *path)
{
    struct stat file;
    if (!path || stat(path, &file) != 0) return 0;
    return (int64_t)file.st_size / cli_runtime_token_bytes(runtime) + 1;
}

/* Tokens the engine makes room for: --ctx, or what this run can come to, within the model's limit.
 */
static int64_t choose_capacity(const cli_runtime *runtime, const run_options *o, int64_t n_prompt)
{
    int64_t saved = saved_tokens(runtime, o->session);
    int64_t wanted = (n_prompt > 0 ? n_prompt : saved) + o->n_tokens;
    if (o->engine.ctx_tokens != CLI_UNSET) return o->engine.ctx_tokens;
    if (saved > wanted) wanted = saved;
    if (n_prompt < runtime->info.max_positions && wanted > runtime->info.max_positions) {
        wanted = runtime->info.max_positions;
    }
    return wanted > 0 ? wanted : 1;
}

static int start(cli_runtime *runtime, const run_options *o, int64_t n_prompt)
{
    int64_t capacity = choose_capacity(runtime, o, n_prompt);
    if (n_prompt + (o->n_tokens > 0) > capacity) {
        return cli_complain(
            "the prompt has %lld tokens, --ctx %lld has no room for it and an answer",
            (long long)n_prompt, (long long)capacity);
    }
    int status = cli_runtime_start(runtime, capacity);
    if (status != CLI_OK || !o->session) return status;
    if (access(o->session, F_OK) != 0) {
        if (n_prompt > 0) return CLI_OK;
        return cli_complain("%s: no such session, and no prompt to begin one", o->session);
    }
    msa_status loaded = msa_session_load(runtime->session, o->session);
    return loaded == MSA_OK ? CLI_OK : cli_complain_library(loaded);
}

static int write_text(void *user, const char *text, size_t n_bytes)
{
    (void)user;
    cli_write_text(text, n_bytes);
    cli_flush();
    return !cli_output_failed();
}

static int read_and_generate(cli_runtime *runtime, const run_options *o, const int32_t *tokens,
                             int64_t n_tokens)
{
    int status = CLI_OK;
    if (n_tokens > 0) status = cli_feed(runtime, tokens, n_tokens);
    if (status == CLI_OK) {
        status = cli_generate(runtime, o->n_tokens, o->ignore_stop, write_text, NULL);
        if (runtime->generated_tokens > 0) cli_print("\n");
        cli_flush();
    }
    if (status == CLI_FAILED) return status;
    if (status == CLI_INTERRUPTED && !o->quiet) cli_talk("interrupted\n");
    if (status == CLI_OK && !o->quiet && runtime->generated_tokens < o->n_tokens &&
        msa_session_length(runtime->session) == runtime->capacity_tokens) {
        cli_talk("the context of %lld tokens is full\n", (long long)runtime->capacity_tokens);
    }
    if (!o->quiet) cli_print_stats(runtime);
    if (o->stats) {
        int written = cli_write_stats(runtime, o->stats);
        if (written != CLI_OK) status = written;
    }
    if (o->session) {
        msa_status saved = msa_session_save(runtime->session, o->session);
        if (saved != MSA_OK) status = cli_complain_library(saved);
    }
    return status;
}

static int run_run(const void *values)
{
    const run_options *o = values;
    cli_runtime runtime;
    cli_buffer prompt = {0};
    int32_t *tokens = NULL;
    size_t n_tokens = 0;
    if (!o->chat && (o->system || o->thinking >= 0)) {
        cli_complain("--system and --thinking need --chat");
        cli_talk("Try 'msa run --help'.\n");
        return CLI_USAGE;
    }
    int status = read_prompt(o, &prompt);
    if (status != CLI_OK) goto done_prompt;
    cli_interrupt_catch();
    status = cli_runtime_open(&runtime, o->model, &o->engine);
    if (status != CLI_OK) goto done;
    runtime.quiet = o->quiet;
    if (prompt.n && o->chat) status = wrap_as_chat(o, &prompt);
    if (status == CLI_OK && prompt.n) status = tokenize(&runtime, o, &prompt, &tokens, &n_tokens);
    if (status == CLI_OK) status = start(&runtime, o, (int64_t)n_tokens);
    if (status == CLI_OK) status = read_and_generate(&runtime, o, tokens, (int64_t)n_tokens);
done:
    msa_free(tokens);
    cli_runtime_close(&runtime);
done_prompt:
    cli_buffer_free(&prompt);
    return status;
}

#define AT(member) offsetof(run_options, member)

static const cli_option arguments[] = {CLI_MODEL_ARGUMENT(run_options, model), {0}};

static const cli_option options[] = {
    {CLI_GROUP, 0, "Prompt", NULL, 0, NULL, 0, 0, NULL},
    {CLI_TEXT, 'p', "prompt", "TEXT", AT(prompt), NULL, 0, 0,
     "The prompt; follows the text of --file when both are given."},
    {CLI_FILE, 'f', "file", "FILE", AT(file), NULL, 0, 0,
     "Read the prompt from a UTF-8 file; - is standard input."},
    {CLI_FLAG, 'c', "chat", NULL, AT(chat), NULL, 0, 0,
     "Put the prompt into the model's chat format, as one user message."},
    {CLI_TEXT, 0, "system", "TEXT", AT(system), NULL, 0, 0, "System message, with --chat."},
    {CLI_CHOICE, 0, "thinking", CLI_THINKING_WORDS, AT(thinking), NULL, 0, 0,
     "Whether the model reasons before it answers, with --chat; adaptive unless given."},
    {CLI_GROUP, 0, "Generation", NULL, 0, NULL, 0, 0, NULL},
    {CLI_COUNT, 'n', "n-tokens", "N", AT(n_tokens), "256", 0, 1048576,
     "Generate at most N tokens; 0 only reads the prompt."},
    {CLI_FLAG, 0, "ignore-stop", NULL, AT(ignore_stop), NULL, 0, 0,
     "Go on at the model's stop tokens."},
    CLI_SAMPLING_ROWS(run_options, engine),
    CLI_ENGINE_ROWS(run_options, engine),
    {CLI_COUNT, 0, "ctx", "N", AT(engine.ctx_tokens), NULL, 1, 1e9,
     "Room for N tokens (64K and 1M are understood); just enough unless given."},
    {CLI_GROUP, 0, "Files and reports", NULL, 0, NULL, 0, 0, NULL},
    {CLI_FILE, 0, "session", "FILE", AT(session), NULL, 0, 0,
     "Keep everything read and written in FILE. Next time the part of the prompt that FILE holds "
     "is "
     "not read again; without a prompt the text continues where it ended."},
    {CLI_FILE, 0, "stats", "FILE", AT(stats), NULL, 0, 0, "Write the numbers as JSON too."},
    {CLI_FLAG, 'q', "quiet", NULL, AT(quiet), NULL, 0, 0, "No progress and no numbers."},
    {0},
};

const cli_command cli_cmd_run = {
    .name = "run",
    .summary = "Read a prompt and generate text.",
    .details =
        "The text goes to standard output while it is made. Progress, and at the end tokens per "
        "second, time to the first token, blocks read of blocks visible and the size of the "
        "cache, go to standard error. Ctrl-C stops and still prints the numbers; the exit "
        "status is then 130.",
    .examples = "msa run demo -p 'Once upon a time' -n 64\n"
                "msa run demo -f book.txt -p 'Question: who is the narrator?' --chat\n"
                "msa run demo -f book.txt --session book.msa -n 0",
    .arguments = arguments,
    .options = options,
    .values_bytes = sizeof(run_options),
    .run = run_run,
};
