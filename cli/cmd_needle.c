/* msa needle: hide a fact in a long document, read it, ask for the fact, say what it took. */
#include "interrupt.h"
#include "json_text.h"
#include "output.h"
#include "progress.h"
#include "runtime.h"

#include <string.h>

typedef struct needle_options {
    const char *model, *document, *length;
    int64_t n_tokens, seed;
    int32_t compare, json, quiet;
    cli_model_options engine;
} needle_options;

/* One reading of the document. */
typedef struct reading {
    int32_t attention; /* 0 sparse, 1 dense */
    int32_t right;
    cli_buffer answer; /* one line */
    int64_t n_generated, blocks_read, blocks_visible, cache_bytes;
    double read_seconds, generate_seconds, token_bytes;
} reading;

typedef struct needle {
    const needle_options *options;
    cli_model_options engine;
    cli_runtime runtime;
    char *document;
    size_t document_bytes;
    msa_task_sample sample;
    cli_buffer prompt; /* with the beginning of the answer */
    int32_t *tokens;
    size_t n_tokens;
    reading readings[2];
    int32_t n_readings;
} needle;

static const char *const attentions[] = {"sparse", "dense"};

/* ---- the document ------------------------------------------------------------------------- */

static msa_status make_prompt(needle *n)
{
    const needle_options *o = n->options;
    msa_task_args args;
    msa_task_args_init(&args);
    args.task = "single-needle";
    args.length = o->n_tokens;
    args.seed = (uint64_t)o->seed;
    args.count_tokens = msa_tokenizer_count;
    args.count_user = n->runtime.tokenizer;
    args.text = n->document;
    args.text_bytes = n->document_bytes;
    msa_status status = msa_task_make(&n->sample, &args, 0);
    if (status != MSA_OK) return status;
    if (!cli_buffer_add(&n->prompt, n->sample.prompt, strlen(n->sample.prompt)) ||
        !cli_buffer_add(&n->prompt, n->sample.prefix, strlen(n->sample.prefix))) {
        return MSA_ENOMEM;
    }
    return msa_tokenizer_encode(n->runtime.tokenizer, n->prompt.data, n->prompt.n, &n->tokens,
                                &n->n_tokens);
}

/* The sentence with the fact, which begins with "One of" whatever stands before it, and the
 * question: pieces of the prompt. */
static const char *find_needle(const needle *n, size_t *n_bytes)
{
    const char *value = strstr(n->sample.prompt, n->sample.references[0]), *begin = value;
    while (begin > n->sample.prompt && strncmp(begin, "One of ", 7) != 0) begin--;
    *n_bytes = (size_t)(value - begin) + strcspn(value, ".") + 1;
    return begin;
}

static const char *find_question(const needle *n, size_t *n_bytes)
{
    const char *question = n->sample.prompt;
    for (const char *at; (at = strstr(question, "Question: ")) != NULL;) question = at + 10;
    *n_bytes = strcspn(question, "\n");
    return question;
}

/* ---- reading it --------------------------------------------------------------------------- */

/* The answer's first line. */
static int take_text(void *user, const char *text, size_t n_bytes)
{
    reading *r = user;
    size_t line = 0;
    while (line < n_bytes && text[line] != '\n') line++;
    return cli_buffer_add(&r->answer, text, line) && line == n_bytes;
}

static msa_session_stats session_stats(const needle *n)
{
    msa_session_stats stats;
    msa_session_stats_init(&stats);
    if (msa_session_get_stats(n->runtime.session, &stats) != MSA_OK) {
        msa_session_stats_init(&stats);
    }
    return stats;
}

/* Bytes of a number in the cache, by the words of CLI_ENGINE_ROWS. */
static double cache_width(int32_t choice)
{
    static const double widths[] = {2, 4, 1};
    return widths[choice];
}

/* Bytes that the selecting layers read for a token of the answer: blocks of keys and values, and
 * with a selection every index key. */
static double count_token_bytes(const needle *n, const reading *r, int64_t n_blocks)
{
    const msa_model_info *info = &n->runtime.info;
    double tokens = (double)(r->n_generated ? r->n_generated : 1);
    double block = 2.0 * info->block_size * info->head_dim * cache_width(n->engine.cache_dtype);
    double index = (double)info->n_sparse_layers * info->index_dim *
                   cache_width(n->engine.index_dtype) * (double)n->n_tokens;
    return (double)n_blocks / tokens * block + (r->attention == 0 ? index : 0);
}

static int read_and_ask(needle *n, reading *r)
{
    cli_runtime *runtime = &n->runtime;
    int status = cli_feed(runtime, n->tokens, (int64_t)n->n_tokens);
    if (status != CLI_OK) return status;
    msa_session_stats before = session_stats(n);
    msa_sample_args_init(&runtime->sampling); /* the most likely token */
    status = cli_generate(runtime, n->sample.answer_tokens, 0, take_text, r);
    if (status != CLI_OK) return status;
    msa_session_stats after = session_stats(n);
    r->read_seconds = runtime->prompt_seconds;
    r->generate_seconds = runtime->generate_seconds;
    r->n_generated = runtime->generated_tokens;
    r->blocks_read = after.blocks_read;
    r->blocks_visible = after.blocks_visible;
    r->cache_bytes = after.kv_bytes;
    r->token_bytes = count_token_bytes(n, r, after.blocks_read - before.blocks_read);
    r->right = msa_answer_score(r->answer.data, r->answer.n, n->sample.references, 1, 0) == 1;
    return CLI_OK;
}

/* An engine and an empty session with room for everything. */
static int start(needle *n, int32_t attention)
{
    msa_session_destroy(n->runtime.session);
    msa_engine_destroy(n->runtime.engine);
    n->runtime.session = NULL;
    n->runtime.engine = NULL;
    n->engine.attention = attention;
    return cli_runtime_start(&n->runtime, n->options->n_tokens);
}

/* ---- results ------------------------------------------------------------------------------ */

static void print_task(const needle *n)
{
    char tokens[32];
    size_t needle_bytes, question_bytes;
    const char *sentence = find_needle(n, &needle_bytes);
    const char *question = find_question(n, &question_bytes);
    cli_print("document  %s: %s tokens%s\n",
              n->options->document ? n->options->document : "made-up sentences",
              cli_grouped((int64_t)n->n_tokens, tokens),
              n->document && n->document_bytes < strlen(n->sample.prompt)
                  ? ", repeated to fill them"
                  : "");
    cli_print("hidden    after %.1f %% of it: %.*s\n", 100 * n->sample.depths[0], (int)needle_bytes,
              sentence);
    cli_print("question  %.*s\n", (int)question_bytes, question);
    cli_flush();
}

static void print_reading(const reading *r)
{
    char read[32], written[32];
    cli_print("%-9s", attentions[r->attention]);
    if (r->answer.n) cli_write_text(r->answer.data, r->answer.n);
    cli_print("  (%s; read in %s, answered in %s)\n", r->right ? "right" : "wrong",
              cli_duration(r->read_seconds, read), cli_duration(r->generate_seconds, written));
    cli_flush();
}

static void print_ratio(double sparse, double dense)
{
    if (sparse > 0) cli_print("%9.1fx", dense / sparse);
    cli_print("\n");
}

/* Both readings beside each other; a layer that selects nothing has no blocks to compare. */
static void print_comparison(const needle *n)
{
    const reading *s = &n->readings[0], *d = &n->readings[1];
    char a[32], b[32];
    double step[2] = {0, 0};
    for (int i = 0; i < 2; i++) {
        const reading *r = &n->readings[i];
        if (r->n_generated) step[i] = r->generate_seconds / (double)r->n_generated;
    }
    cli_print("\n%-34s%14s%14s%10s\n", "", "sparse", "dense", "ratio");
    cli_print("%-34s%14s%14s", "reading", cli_duration(s->read_seconds, a),
              cli_duration(d->read_seconds, b));
    print_ratio(s->read_seconds, d->read_seconds);
    cli_print("%-34s%11.1f ms%11.1f ms", "a token of the answer", 1e3 * step[0], 1e3 * step[1]);
    print_ratio(step[0], step[1]);
    if (n->runtime.info.n_sparse_layers == 0) return;
    cli_print("%-34s%14s%14s", "read of the cache for a token", cli_bytes(s->token_bytes, a),
              cli_bytes(d->token_bytes, b));
    print_ratio(s->token_bytes, d->token_bytes);
    cli_print("%-34s%14s%14s", "blocks read in all", cli_grouped(s->blocks_read, a),
              cli_grouped(d->blocks_read, b));
    print_ratio((double)s->blocks_read, (double)d->blocks_read);
    cli_print("%-34s%14s%14s\n", "cache", cli_bytes((double)s->cache_bytes, a),
              cli_bytes((double)d->cache_bytes, b));
}

static void print_json(const needle *n)
{
    size_t n_bytes;
    cli_print("{\"model\": ");
    cli_write_json_string(n->options->model, strlen(n->options->model));
    cli_print(", \"tokens\": %zu, \"seed\": %lld, \"depth\": %.6f,\n \"needle\": ", n->n_tokens,
              (long long)n->options->seed, n->sample.depths[0]);
    const char *text = find_needle(n, &n_bytes);
    cli_write_json_string(text, n_bytes);
    cli_print(", \"expected\": \"%s\",\n \"question\": ", n->sample.references[0]);
    text = find_question(n, &n_bytes);
    cli_write_json_string(text, n_bytes);
    cli_print(",\n \"readings\": [");
    for (int32_t i = 0; i < n->n_readings; i++) {
        const reading *r = &n->readings[i];
        cli_print("%s\n  {\"attention\": \"%s\", \"answer\": ", i ? "," : "",
                  attentions[r->attention]);
        cli_write_json_string(r->answer.n ? r->answer.data : "", r->answer.n);
        cli_print(", \"right\": %s, \"read_seconds\": %.6f, \"generated_tokens\": %lld,\n"
                  "   \"generate_seconds\": %.6f, \"token_bytes\": %.0f, \"blocks_read\": %lld,\n"
                  "   \"blocks_visible\": %lld, \"cache_bytes\": %lld}",
                  r->right ? "true" : "false", r->read_seconds, (long long)r->n_generated,
                  r->generate_seconds, r->token_bytes, (long long)r->blocks_read,
                  (long long)r->blocks_visible, (long long)r->cache_bytes);
    }
    cli_print("]}\n");
}

/* ---- the command -------------------------------------------------------------------------- */

static int run_readings(needle *n)
{
    const needle_options *o = n->options;
    int status = CLI_OK;
    for (int32_t i = 0; i < 1 + o->compare && status == CLI_OK; i++) {
        reading *r = &n->readings[i];
        if (i > 0) status = start(n, 1);
        r->attention = n->engine.attention;
        if (!o->quiet) cli_talk("%s attention\n", attentions[r->attention]);
        if (status == CLI_OK) status = read_and_ask(n, r);
        if (status != CLI_OK) break;
        n->n_readings++;
        if (!o->json) print_reading(r);
    }
    if (o->json && n->n_readings) print_json(n);
    if (!o->json && n->n_readings == 2) print_comparison(n);
    return status;
}

static int run_open(needle *n)
{
    const needle_options *o = n->options;
    int status = cli_runtime_open(&n->runtime, o->model, &n->engine);
    if (status != CLI_OK) return status;
    n->runtime.quiet = o->quiet;
    status = start(n, o->compare ? 0 : o->engine.attention);
    if (status != CLI_OK) return status;
    msa_status made = MSA_OK;
    if (o->document) made = msa_eval_read_text(&n->document, &n->document_bytes, o->document);
    if (made == MSA_OK) made = make_prompt(n);
    if (made != MSA_OK) return cli_complain_library(made);
    cli_interrupt_catch();
    if (!o->json) print_task(n);
    return run_readings(n);
}

static int run_needle(const void *values)
{
    needle n = {.options = values};
    n.engine = n.options->engine;
    msa_task_sample_init(&n.sample);
    int status = run_open(&n);
    cli_runtime_close(&n.runtime);
    msa_task_sample_free(&n.sample);
    msa_free(n.document);
    msa_free(n.tokens);
    cli_buffer_free(&n.prompt);
    for (int i = 0; i < 2; i++) cli_buffer_free(&n.readings[i].answer);
    return status;
}

#define AT(member) offsetof(needle_options, member)

static const cli_option arguments[] = {CLI_MODEL_ARGUMENT(needle_options, model), {0}};

static const cli_option options[] = {
    {CLI_FOLDER, 'f', "file", "PATH", AT(document), NULL, 0, 0,
     "Hide the fact in this UTF-8 text (or the .txt files of a folder), from a sentence of it on; "
     "a short one is repeated. Made-up sentences unless given."},
    {CLI_COUNT, 'l', "length", "N", AT(n_tokens), "128K", 64, 1 << 28,
     "Tokens of the document, question and answer included."},
    {CLI_COUNT, 's', "seed", "N", AT(seed), "1", 0, 9007199254740992.0,
     "Which fact, and where it is hidden."},
    {CLI_FLAG, 0, "compare", NULL, AT(compare), NULL, 0, 0,
     "Read it once more with dense attention, and put the two beside each other."},
    {CLI_FLAG, 0, "json", NULL, AT(json), NULL, 0, 0, "Print JSON instead of text."},
    {CLI_FLAG, 'q', "quiet", NULL, AT(quiet), NULL, 0, 0, "No progress."},
    CLI_ENGINE_ROWS(needle_options, engine),
    {0},
};

const cli_command cli_cmd_needle = {
    .name = "needle",
    .summary = "Hide a fact in a long document and ask the model for it.",
    .details =
        "The fact is a sentence with a number of seven digits, at a depth that the seed decides. "
        "The model reads the document and answers greedily, up to a line break; the answer is "
        "right when it holds the number. The exit status tells whether the model could be asked, "
        "not whether it was right: msa eval counts that over many documents.\n\n"
        "Bytes read of the cache are those of layers that select, for a token of the answer: the "
        "blocks attended to and every index key, or with dense attention all keys and values. "
        "Ctrl-C ends the reading in work; what was finished is printed.",
    .examples = "msa needle model -f book.txt\n"
                "msa needle model -f books --length 512K --seed 7 --compare\n"
                "msa needle model --length 32K --json",
    .arguments = arguments,
    .options = options,
    .values_bytes = sizeof(needle_options),
    .run = run_needle,
};
