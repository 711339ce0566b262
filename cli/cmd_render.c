/* msa render: the exact prompt of a conversation. */
#include "command.h"
#include "conversation.h"
#include "output.h"
#include "text.h"

#include "msa/model.h"

typedef struct render_values {
    const char *model;
} render_values;

static int run_render(const void *values)
{
    const render_values *v = values;
    cli_buffer request = {0};
    char *prompt;
    size_t prompt_bytes;
    if (cli_check_chat(v->model) != CLI_OK) return CLI_FAILED;
    if (!cli_read_file(&request, "-")) return CLI_FAILED;
    msa_status status = msa_chat_render(request.data, request.n, &prompt, &prompt_bytes);
    cli_buffer_free(&request);
    if (status == MSA_EINVAL) { /* the template's own words, and nothing else */
        cli_talk("%s\n", msa_last_error());
        return CLI_FAILED;
    }
    if (status != MSA_OK) return cli_complain_library(status);
    cli_write(prompt, prompt_bytes);
    msa_free(prompt);
    return CLI_OK;
}

static const cli_option arguments[] = {
    {.kind = CLI_FOLDER,
     .name = "MODEL",
     .offset = offsetof(render_values, model),
     .help = "Model folder; only config.json is read."},
    {0},
};

const cli_command cli_cmd_render = {
    .name = "render",
    .summary = "Render a conversation into the model's prompt.",
    .details =
        "Reads one JSON object from standard input: messages (an array), tools (an array or null) "
        "and options (add_generation_prompt, thinking_mode, model_identity); other keys are "
        "ignored. Writes the prompt, byte for byte as the model's chat template renders it. When "
        "the template refuses a conversation, its error text is written to standard error.",
    .examples = "echo '{\"messages\": [{\"role\": \"user\", \"content\": \"Hi\"}]}' | msa render "
                "MODEL",
    .arguments = arguments,
    .values_bytes = sizeof(render_values),
    .run = run_render,
};
