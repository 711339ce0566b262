/* msa chat: a conversation, one line a turn.
 *
 * Every turn renders the whole conversation and feeds it; the session keeps what it shares with the
 * last turn, so only the new part is read. Ctrl-C stops an answer and keeps what was said of it.
 */
#include "conversation.h"
#include "interrupt.h"
#include "line_input.h"
#include "output.h"
#include "progress.h"
#include "reasoning.h"
#include "runtime.h"

#include <string.h>
#include <unistd.h>

typedef struct chat_options {
    const char *model, *system;
    int64_t n_tokens;
    int32_t thinking;
    cli_model_options engine;
} chat_options;

typedef struct chat {
    const chat_options *options;
    cli_runtime runtime;
    cli_buffer messages;
    cli_buffer answer; /* of this turn, as the model wrote it */
    cli_reasoning reasoning;
} chat;

/* ---- one turn ----------------------------------------------------------------------------- */

static int show_text(void *user, const char *text, size_t n_bytes)
{
    chat *c = user;
    cli_reasoning_show(&c->reasoning, text, n_bytes);
    cli_flush();
    return cli_buffer_add(&c->answer, text, n_bytes) && !cli_output_failed();
}

/* Make the session hold the conversation, ready for an answer. */
static int feed_conversation(chat *c)
{
    char *prompt = NULL;
    size_t prompt_bytes = 0, n_tokens = 0;
    int32_t *tokens = NULL;
    int status = cli_render(&c->messages, c->options->thinking, &prompt, &prompt_bytes);
    if (status == CLI_OK) {
        msa_status encoded =
            msa_tokenizer_encode(c->runtime.tokenizer, prompt, prompt_bytes, &tokens, &n_tokens);
        if (encoded != MSA_OK) status = cli_complain_library(encoded);
    }
    if (status == CLI_OK && (int64_t)n_tokens >= c->runtime.capacity_tokens) {
        status = cli_complain("the conversation has %lld tokens, the context holds %lld; /clear "
                              "begins a new one, a larger --ctx holds more",
                              (long long)n_tokens, (long long)c->runtime.capacity_tokens);
    }
    if (status == CLI_OK) status = cli_feed(&c->runtime, tokens, (int64_t)n_tokens);
    msa_free(tokens);
    msa_free(prompt);
    return status;
}

/* Ask and answer. A turn that fails leaves the conversation as it was. */
static void take_turn(chat *c, const char *text, size_t n_bytes)
{
    size_t before = c->messages.n;
    int status = CLI_FAILED;
    cli_buffer_clear(&c->answer);
    cli_reasoning_begin(&c->reasoning, c->options->thinking == 1);
    if (c->options->thinking == 1) (void)cli_buffer_add(&c->answer, "<mm:think>", 10);
    if (!cli_add_message(&c->messages, "user", text, n_bytes)) {
        cli_complain("out of memory");
        return;
    }
    status = feed_conversation(c);
    if (status == CLI_OK) {
        status = cli_generate(&c->runtime, c->options->n_tokens, 0, show_text, c);
        cli_reasoning_end(&c->reasoning);
        cli_print("\n");
        cli_flush();
    }
    if (status == CLI_INTERRUPTED) {
        cli_talk("(stopped)\n");
        cli_interrupt_clear();
    }
    int answered = status != CLI_FAILED && c->runtime.generated_tokens > 0;
    if (answered && cli_add_message(&c->messages, "assistant", c->answer.data, c->answer.n)) return;
    c->messages.n = before;
    if (c->messages.data) c->messages.data[before] = '\0';
}

/* ---- commands of the conversation --------------------------------------------------------- */

static const char help_text[] = "  /help        this list\n"
                                "  /stats       speed, blocks read and cache of the last answer\n"
                                "  /save FILE   save the conversation and its cache\n"
                                "  /load FILE   go on with a saved conversation\n"
                                "  /clear       forget the conversation\n"
                                "  /quit        leave (or Ctrl-D)\n"
                                "  Ctrl-C stops an answer; \\ at the end of a line continues it.\n";

static int begin_conversation(chat *c)
{
    const char *system = c->options->system;
    cli_buffer_clear(&c->messages);
    if (!system || cli_add_message(&c->messages, "system", system, strlen(system))) return CLI_OK;
    return cli_complain("out of memory");
}

/* The cache lies beside the messages: FILE and FILE.cache. */
static int cache_path(char *path, size_t path_bytes, const char *file)
{
    if (snprintf(path, path_bytes, "%s.cache", file) < (int)path_bytes) return 1;
    cli_complain("the file name is too long");
    return 0;
}

static void save(chat *c, const char *file)
{
    char path[1024];
    if (!cache_path(path, sizeof(path), file)) return;
    if (cli_save_messages(&c->messages, file) != CLI_OK) return;
    if (msa_session_length(c->runtime.session) > 0) {
        msa_status saved = msa_session_save(c->runtime.session, path);
        if (saved != MSA_OK) {
            cli_complain_library(saved);
            return;
        }
    }
    cli_talk("saved %s and %s\n", file, path);
}

/* Without a usable cache the conversation is simply read again at the next turn. */
static void load(chat *c, const char *file)
{
    char path[1024], count[32];
    if (!cache_path(path, sizeof(path), file)) return;
    if (cli_load_messages(&c->messages, file) != CLI_OK) return;
    msa_status status = msa_session_truncate(c->runtime.session, 0);
    if (status == MSA_OK && access(path, F_OK) == 0) {
        status = msa_session_load(c->runtime.session, path);
    }
    if (status != MSA_OK) cli_complain_library(status);
    cli_talk("loaded %s, %s tokens in the cache\n", file,
             cli_grouped(msa_session_length(c->runtime.session), count));
}

/* A line that begins with a slash. 0: leave. */
static int obey(chat *c, const char *line)
{
    size_t word = strcspn(line, " ");
    const char *rest = line + word + strspn(line + word, " ");
    if (strcmp(line, "/quit") == 0 || strcmp(line, "/exit") == 0) return 0;
    if (strcmp(line, "/help") == 0) {
        cli_talk("%s", help_text);
    } else if (strcmp(line, "/stats") == 0) {
        cli_print_stats(&c->runtime);
    } else if (strcmp(line, "/clear") == 0) {
        (void)begin_conversation(c);
    } else if (word == 5 && memcmp(line, "/save", 5) == 0 && *rest) {
        save(c, rest);
    } else if (word == 5 && memcmp(line, "/load", 5) == 0 && *rest) {
        load(c, rest);
    } else if (word == 5 && (!memcmp(line, "/save", 5) || !memcmp(line, "/load", 5))) {
        cli_talk("%.5s needs a file name\n", line);
    } else {
        cli_talk("unknown: %.32s; /help lists what there is\n", line);
    }
    return 1;
}

/* ---- the conversation --------------------------------------------------------------------- */

/* A turn's text: lines joined while they end in a backslash. */
static cli_line read_turn(cli_buffer *turn, cli_buffer *line)
{
    cli_buffer_clear(turn);
    for (;;) {
        cli_line got = cli_read_line(line);
        if (got != CLI_LINE) return got;
        int more = line->n > 0 && line->data[line->n - 1] == '\\';
        if (more) line->data[line->n - 1] = '\n';
        if (!cli_buffer_add(turn, line->data, line->n)) return CLI_LINE_END;
        if (!more) return CLI_LINE;
    }
}

static int converse(chat *c)
{
    cli_buffer turn = {0}, line = {0};
    int status = CLI_OK;
    for (int going = 1; going && status == CLI_OK;) {
        cli_line got = read_turn(&turn, &line);
        if (got == CLI_LINE_END) break;
        if (got == CLI_LINE_INTERRUPTED) {
            cli_talk("\n(Ctrl-D or /quit leaves)\n");
        } else if (turn.n > 0 && turn.data[0] == '/') {
            going = obey(c, turn.data);
        } else if (turn.n > 0) {
            take_turn(c, turn.data, turn.n);
        }
        if (cli_output_failed()) status = CLI_FAILED;
    }
    if (cli_is_terminal(STDIN_FILENO)) cli_talk("\n");
    cli_buffer_free(&turn);
    cli_buffer_free(&line);
    return status;
}

/* Room for the conversation when --ctx is not given: all the model takes, within half the memory
 * that is free. A host's memory is reserved, not touched, until tokens arrive. */
static int64_t choose_context(const chat *c)
{
    int64_t most = c->runtime.info.max_positions;
    if (c->options->engine.ctx_tokens != CLI_UNSET) return c->options->engine.ctx_tokens;
    int64_t available = cli_cache_memory(c->runtime.ctx, &c->runtime.info);
    if (available <= 0) return most;
    int64_t fit = cli_tokens_that_fit(cli_runtime_token_bytes(&c->runtime), available / 2);
    return fit < most && fit > 0 ? fit : most;
}

static int run_chat(const void *values)
{
    chat c;
    char room[32];
    memset(&c, 0, sizeof(c));
    c.options = values;
    cli_interrupt_catch();
    int status = cli_runtime_open(&c.runtime, c.options->model, &c.options->engine);
    if (status == CLI_OK) status = cli_check_chat(c.options->model);
    if (status == CLI_OK) status = cli_runtime_start(&c.runtime, choose_context(&c));
    if (status == CLI_OK) status = begin_conversation(&c);
    if (status == CLI_OK) {
        cli_talk("%s, %s tokens of context; /help lists commands\n", c.runtime.info.architecture,
                 cli_grouped(c.runtime.capacity_tokens, room));
        cli_lines_open("> ");
        status = converse(&c);
        cli_lines_close();
    }
    cli_buffer_free(&c.messages);
    cli_buffer_free(&c.answer);
    cli_runtime_close(&c.runtime);
    return status;
}

static const cli_option arguments[] = {CLI_MODEL_ARGUMENT(chat_options, model), {0}};

static const cli_option options[] = {
    {CLI_GROUP, 0, "Conversation", NULL, 0, NULL, 0, 0, NULL},
    {CLI_TEXT, 0, "system", "TEXT", offsetof(chat_options, system), NULL, 0, 0, "System message."},
    {CLI_CHOICE, 0, "thinking", CLI_THINKING_WORDS, offsetof(chat_options, thinking), "adaptive", 0,
     0, "Whether the model reasons before it answers."},
    {CLI_COUNT, 'n', "n-tokens", "N", offsetof(chat_options, n_tokens), "4096", 1, 1048576,
     "At most N tokens an answer."},
    CLI_SAMPLING_ROWS(chat_options, engine),
    CLI_ENGINE_ROWS(chat_options, engine),
    {CLI_COUNT, 0, "ctx", "N", offsetof(chat_options, engine.ctx_tokens), NULL, 1, 1e9,
     "Room for N tokens; as much as the model takes and half the free memory holds unless given."},
    {0},
};

const cli_command cli_cmd_chat = {
    .name = "chat",
    .summary = "Talk with a model, one line a turn.",
    .details =
        "Ctrl-C stops the answer, not the program; Ctrl-D leaves. Lines that begin with a slash "
        "are commands: /help /stats /save FILE /load FILE /clear /quit. Answers go to standard "
        "output, reasoning and everything else to standard error.",
    .examples =
        "msa chat demo\nmsa chat demo --thinking enabled --system 'Answer in one sentence.'",
    .arguments = arguments,
    .options = options,
    .values_bytes = sizeof(chat_options),
    .run = run_chat,
};
