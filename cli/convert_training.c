/* The training of a conversion: its stages as the trainer reads them. */
#include "convert.h"
#include "json_text.h"
#include "output.h"
#include "training.h"

#include <string.h>

/* ---- the configuration --------------------------------------------------------------------- */

static int add_string(cli_buffer *text, const char *string)
{
    return cli_add_json_string(text, string, strlen(string));
}

/* {"tokenizer": …, "cache": …, "sources": [{"text": …, "weight": 1}]} */
static int add_data(const convert_options *o, cli_buffer *text, const char *source)
{
    char tokens[CONVERT_PATH_BYTES], training[CONVERT_PATH_BYTES];
    if (!convert_path(training, o->out, "training")) return 0;
    if (!convert_path(tokens, training, "tokens")) return 0;
    return cli_buffer_print(text, "{\"tokenizer\": ") && add_string(text, o->source) &&
           cli_buffer_print(text, ", \"cache\": ") && add_string(text, tokens) &&
           cli_buffer_print(text, ", \"sources\": [{\"text\": ") && add_string(text, source) &&
           cli_buffer_print(text, ", \"weight\": 1}]}");
}

static int64_t at_least(int64_t value, int64_t low)
{
    return value > low ? value : low;
}

static int add_warmup(const convert_options *o, cli_buffer *text)
{
    int ok = cli_buffer_print(
        text,
        "    {\"name\": \"warm-up\", \"attention\": \"warmup\", \"freeze_backbone\": %s,\n"
        "     \"steps\": %lld, \"warmup_steps\": %lld, \"lr\": %.9g, \"index_lr\": %.9g",
        o->train_backbone ? "false" : "true", (long long)o->steps, (long long)(o->steps * 3 / 100),
        o->lr, o->index_lr);
    if (ok && o->gate > 0) ok = cli_buffer_print(text, ", \"gate\": %.9g", o->gate);
    return ok && cli_buffer_print(text, "}%s\n", o->sparse_steps ? "," : "");
}

/* The index branch learns 20 times as fast as the backbone here. */
static int add_sparse(const convert_options *o, cli_buffer *text)
{
    return cli_buffer_print(
        text,
        "    {\"name\": \"sparse\", \"attention\": \"sparse\", \"steps\": %lld,\n"
        "     \"warmup_steps\": %lld, \"lr\": %.9g, \"index_lr\": %.9g}\n",
        (long long)o->sparse_steps, (long long)(o->sparse_steps * 3 / 100), o->lr, 20 * o->lr);
}

int convert_training_config(const convert_options *o, cli_buffer *text)
{
    char training[CONVERT_PATH_BYTES], start[CONVERT_PATH_BYTES];
    if (!convert_path(training, o->out, "training")) return CLI_FAILED;
    if (!convert_path(start, training, "start")) return CLI_FAILED;
    int64_t every = at_least((o->steps + o->sparse_steps) / 10, 1);
    int ok =
        cli_buffer_print(text, "{\n  \"output\": ") && add_string(text, training) &&
        cli_buffer_print(text, ",\n  \"seed\": %lld,\n  \"dtype\": \"%s\",\n", (long long)o->seed,
                         o->dtype ? "f32" : "bf16") &&
        cli_buffer_print(text, "  \"model\": {\"init_from\": ") && add_string(text, start) &&
        cli_buffer_print(text, "},\n  \"data\": ") && add_data(o, text, o->text) &&
        cli_buffer_print(text, ",\n  \"validation\": {\"data\": ") && add_data(o, text, o->valid) &&
        cli_buffer_print(text, ", \"every\": %lld, \"batches\": 2},\n", (long long)every) &&
        cli_buffer_print(text, "  \"checkpoint\": {\"every\": %lld, \"keep\": 1},\n",
                         (long long)every) &&
        cli_buffer_print(text,
                         "  \"defaults\": {\"length\": %lld, \"micro_tokens\": %lld, "
                         "\"step_tokens\": %lld},\n",
                         (long long)o->length, (long long)o->length, (long long)o->step_tokens) &&
        cli_buffer_print(text, "  \"stages\": [\n");
    if (ok && o->steps) ok = add_warmup(o, text);
    if (ok && o->sparse_steps) ok = add_sparse(o, text);
    ok = ok && cli_buffer_print(text, "  ]\n}\n");
    return ok ? CLI_OK : cli_complain("out of memory");
}

/* ---- the run ------------------------------------------------------------------------------- */

int convert_train(msa_context *ctx, const char *config, char *folder)
{
    msa_trainer *trainer = NULL;
    msa_trainer_args args;
    msa_trainer_state s;
    int result = CLI_OK;
    msa_trainer_args_init(&args);
    msa_trainer_state_init(&s);
    args.config_text = config;
    msa_status status = cli_training_open(&trainer, ctx, &args, 0);
    if (status == MSA_OK) status = cli_training_run(trainer, CLI_UNSET, 0, &s);
    if (status != MSA_OK) {
        result = cli_complain_library(status);
    } else if (s.stage < s.n_stages) {
        cli_talk("interrupted; the same command goes on\n");
        result = CLI_INTERRUPTED;
    } else {
        (void)snprintf(folder, CONVERT_PATH_BYTES, "%s", s.folder);
    }
    msa_trainer_destroy(trainer);
    return result;
}
