/* Conversations as JSON; see conversation.h. */
#include "conversation.h"

#include "command.h"
#include "json_text.h"
#include "output.h"

#include "msa/model.h"

#include <errno.h>
#include <string.h>

static const char *const thinking_words[] = {"adaptive", "enabled", "disabled"};

static int add_text(cli_buffer *buffer, const char *text)
{
    return cli_buffer_add(buffer, text, strlen(text));
}

int cli_add_message(cli_buffer *messages, const char *role, const char *text, size_t n_bytes)
{
    size_t before = messages->n;
    int ok = add_text(messages, before ? ",\n{\"role\": \"" : "{\"role\": \"") &&
             add_text(messages, role) && add_text(messages, "\", \"content\": ") &&
             cli_add_json_string(messages, text, n_bytes) && add_text(messages, "}");
    if (!ok) messages->n = before;
    return ok;
}

int cli_render(const cli_buffer *messages, int32_t thinking, char **text, size_t *n_bytes)
{
    cli_buffer request = {0};
    int ok = add_text(&request, "{\"messages\": [") &&
             cli_buffer_add(&request, messages->data, messages->n) &&
             add_text(&request, "], \"options\": {\"add_generation_prompt\": true, "
                                "\"thinking_mode\": \"") &&
             add_text(&request, thinking_words[thinking]) && add_text(&request, "\"}}");
    int status = CLI_OK;
    if (!ok) {
        status = cli_complain("out of memory");
    } else {
        msa_status rendered = msa_chat_render(request.data, request.n, text, n_bytes);
        if (rendered != MSA_OK) status = cli_complain_library(rendered);
    }
    cli_buffer_free(&request);
    return status;
}

int cli_save_messages(const cli_buffer *messages, const char *path)
{
    FILE *file = fopen(path, "w");
    if (!file) return cli_complain("%s: %s", path, strerror(errno));
    int failed = fprintf(file, "[%s]\n", messages->n ? messages->data : "") < 0;
    failed |= fclose(file) != 0;
    return failed ? cli_complain("%s: %s", path, strerror(errno)) : CLI_OK;
}

int cli_load_messages(cli_buffer *messages, const char *path)
{
    cli_buffer text = {0}, loaded = {0};
    char *prompt = NULL;
    size_t prompt_bytes;
    int status = cli_read_file(&text, path) ? CLI_OK : CLI_FAILED;
    size_t end = text.n;
    while (end > 0 && strchr(" \t\r\n", text.data[end - 1])) end--;
    if (status == CLI_OK && (end < 2 || text.data[0] != '[' || text.data[end - 1] != ']')) {
        status = cli_complain("%s: not a saved conversation, must be a JSON array", path);
    }
    if (status == CLI_OK && !cli_buffer_add(&loaded, text.data + 1, end - 2)) {
        status = cli_complain("out of memory");
    }
    if (status == CLI_OK) status = cli_render(&loaded, 0, &prompt, &prompt_bytes);
    if (status == CLI_OK) {
        cli_buffer old = *messages;
        *messages = loaded;
        loaded = old;
    }
    msa_free(prompt);
    cli_buffer_free(&loaded);
    cli_buffer_free(&text);
    return status;
}

int cli_check_chat(const char *dir)
{
    msa_status status = msa_chat_check(dir);
    return status == MSA_OK ? CLI_OK : cli_complain_library(status);
}
