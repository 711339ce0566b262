/* msa eval: a model's answers on long-text tasks, and how well it predicts text. */
#include "command.h"
#include "eval_report.h"
#include "interrupt.h"
#include "options.h"
#include "output.h"
#include "progress.h"
#include "runtime.h"

#include <stdlib.h>
#include <string.h>

#define MAX_TASKS   16
#define MAX_LENGTHS 16
#define MAX_LENGTH  (1 << 28)

typedef struct eval_options {
    const char *model, *tasks, *ruler, *lengths, *haystack, *text;
    int64_t count, seed;
    int32_t json;
    cli_model_options engine;
} eval_options;

typedef struct job {
    const eval_options *options;
    cli_runtime runtime;
    msa_ruler_file *ruler;
    char *tasks[MAX_TASKS]; /* point into task_words */
    char *task_words;
    int64_t lengths[MAX_LENGTHS];
    int32_t n_tasks, n_lengths;
    char *haystack, *text; /* of the files; text is haystack without --text */
    size_t haystack_bytes, text_bytes;
    cli_eval_row *rows;
    int32_t n_rows;
} job;

/* ---- the command line --------------------------------------------------------------------- */

static int usage(void)
{
    cli_talk("Try 'msa eval --help'.\n");
    return CLI_USAGE;
}

static int is_perplexity(const char *task)
{
    return strcmp(task, "perplexity") == 0;
}

static int is_recall(const char *task)
{
    return strcmp(task, "recall") == 0;
}

/* What is no generated task: it reads --text. */
static int reads_text(const char *task)
{
    return is_perplexity(task) || is_recall(task);
}

static int is_task(const char *word)
{
    const char *name;
    for (int32_t i = 0; (name = msa_task_name(i, NULL)) != NULL; i++) {
        if (strcmp(name, word) == 0) return 1;
    }
    return reads_text(word);
}

static int unknown_task(const char *word)
{
    const char *known[MAX_TASKS + 3] = {NULL};
    int32_t n = 0;
    for (; n < MAX_TASKS && msa_task_name(n, NULL); n++) known[n] = msa_task_name(n, NULL);
    known[n++] = "perplexity";
    known[n] = "recall";
    const char *near = cli_nearest(word, known);
    if (near) {
        cli_complain("--task: unknown task \"%.64s\"; did you mean \"%s\"?", word, near);
    } else {
        cli_complain("--task: unknown task \"%.64s\"", word);
    }
    return usage();
}

/* Cut a copy of "a,b,c" into its words. */
static char *next_word(char **rest)
{
    char *word = *rest;
    if (!word) return NULL;
    char *comma = strchr(word, ',');
    if (comma) *comma = '\0';
    *rest = comma ? comma + 1 : NULL;
    return word;
}

static int parse_tasks(job *j)
{
    char *rest = j->task_words, *word;
    while ((word = next_word(&rest)) != NULL) {
        if (!is_task(word)) return unknown_task(word);
        if (j->n_tasks == MAX_TASKS) {
            cli_complain("--task: more than %d tasks", MAX_TASKS);
            return usage();
        }
        j->tasks[j->n_tasks++] = word;
    }
    return CLI_OK;
}

static int parse_lengths(job *j)
{
    char words[512], *rest = words, *word;
    snprintf(words, sizeof(words), "%s", j->options->lengths);
    while ((word = next_word(&rest)) != NULL) {
        int64_t length;
        if (!cli_parse_count(word, &length) || length < 2 || length > MAX_LENGTH ||
            j->n_lengths == MAX_LENGTHS) {
            cli_complain("--length = \"%.64s\", must be at most %d whole numbers from 2 to %d, "
                         "separated by commas",
                         j->options->lengths, MAX_LENGTHS, MAX_LENGTH);
            return usage();
        }
        j->lengths[j->n_lengths++] = length;
    }
    return CLI_OK;
}

/* The first task that needs a text; NULL: none. */
static const char *text_task(const job *j)
{
    for (int32_t i = 0; i < j->n_tasks; i++) {
        if (reads_text(j->tasks[i])) return j->tasks[i];
    }
    return NULL;
}

static int parse(job *j)
{
    const eval_options *o = j->options;
    if (!o->tasks && !o->ruler) {
        cli_complain("nothing to do: give --task NAME or --ruler FILE");
        return usage();
    }
    if (o->tasks) {
        j->task_words = strdup(o->tasks);
        if (!j->task_words) return cli_complain("out of memory");
        int status = parse_tasks(j);
        if (status != CLI_OK) return status;
    }
    int status = parse_lengths(j);
    if (status == CLI_OK && text_task(j) && !o->haystack && !o->text) {
        cli_talk("%s of made-up sentences; --text PATH takes a real text\n", text_task(j));
    }
    return status;
}

/* ---- before the work ---------------------------------------------------------------------- */

static msa_status read_files(job *j)
{
    const eval_options *o = j->options;
    msa_status status = MSA_OK;
    if (o->haystack) status = msa_eval_read_text(&j->haystack, &j->haystack_bytes, o->haystack);
    if (status == MSA_OK && o->text) {
        status = msa_eval_read_text(&j->text, &j->text_bytes, o->text);
    }
    if (status == MSA_OK && o->ruler) {
        status = msa_ruler_open(&j->ruler, o->ruler, j->runtime.tokenizer);
    }
    return status;
}

/* Room for the longest sample. */
static msa_status needed_tokens(const job *j, int64_t *n_tokens)
{
    msa_ruler_info info;
    msa_ruler_info_init(&info);
    if (j->ruler) {
        msa_status status = msa_ruler_get_info(j->ruler, &info);
        if (status != MSA_OK) return status;
    }
    *n_tokens = info.max_tokens;
    for (int32_t i = 0; i < j->n_lengths && j->n_tasks > 0; i++) {
        if (j->lengths[i] > *n_tokens) *n_tokens = j->lengths[i];
    }
    return MSA_OK;
}

/* Make the first sample of each row: what cannot be asked is known before the work. */
static msa_status check_rows(const job *j)
{
    msa_status status = MSA_OK;
    for (int32_t i = 0; i < j->n_tasks * j->n_lengths && status == MSA_OK; i++) {
        msa_task_args args;
        msa_task_sample sample;
        msa_task_args_init(&args);
        msa_task_sample_init(&sample);
        args.task = j->tasks[i / j->n_lengths];
        if (reads_text(args.task)) continue;
        args.length = j->lengths[i % j->n_lengths];
        args.seed = (uint64_t)j->options->seed;
        args.count_tokens = msa_tokenizer_count;
        args.count_user = j->runtime.tokenizer;
        args.text = j->haystack;
        args.text_bytes = j->haystack_bytes;
        status = msa_task_make(&sample, &args, 0);
        msa_task_sample_free(&sample);
    }
    return status;
}

/* ---- running ------------------------------------------------------------------------------ */

static int32_t watch(void *user, int64_t done, int64_t total)
{
    cli_progress_update(user, done, total);
    return cli_interrupted();
}

static void fill_args(const job *j, const char *task, int64_t length, cli_progress *bar,
                      msa_eval_args *args)
{
    msa_eval_args_init(args);
    args->engine = j->runtime.engine;
    args->tokenizer = j->runtime.tokenizer;
    args->stop_tokens = j->runtime.generation.eos_token_ids;
    args->n_stop_tokens = j->runtime.generation.n_eos;
    args->task = task;
    args->length = length;
    args->count = j->options->count;
    args->scan8 = j->options->engine.index8;
    args->seed = (uint64_t)j->options->seed;
    args->text = j->haystack;
    args->text_bytes = j->haystack_bytes;
    if (reads_text(task) && j->text) {
        args->text = j->text;
        args->text_bytes = j->text_bytes;
    }
    args->progress = watch;
    args->user = bar;
}

static msa_status run_recall(job *j, const msa_eval_args *args, cli_eval_row *row)
{
    row->n_layers = j->runtime.info.n_layers;
    row->layers = calloc((size_t)row->n_layers, sizeof(*row->layers));
    if (!row->layers) return MSA_ENOMEM;
    return msa_eval_recall(&row->result, row->layers, j->runtime.model, args);
}

/* One row; length 0 is the RULER file. */
static msa_status run_row(job *j, const char *task, int64_t length)
{
    msa_eval_args args;
    cli_progress bar;
    msa_status status;
    cli_eval_row *row = &j->rows[j->n_rows];
    row->task = task;
    msa_eval_result_init(&row->result);
    cli_progress_begin(&bar, task, "tokens", 0);
    fill_args(j, task, length, &bar, &args);
    if (length == 0) {
        args.count = 0;
        status = msa_eval_ruler(&row->result, &args, j->ruler);
    } else if (is_recall(task)) {
        status = run_recall(j, &args, row);
    } else if (is_perplexity(task)) {
        status = msa_eval_perplexity(&row->result, &args);
    } else {
        status = msa_eval_task(&row->result, &args);
    }
    cli_progress_clear();
    if (status != MSA_OK) return status;
    j->n_rows++;
    if (!j->options->json) cli_eval_print_row(row);
    return MSA_OK;
}

static msa_status run_rows(job *j)
{
    msa_status status = MSA_OK;
    if (!j->options->json) cli_eval_print_head();
    for (int32_t t = 0; t < j->n_tasks; t++) {
        for (int32_t i = 0; i < j->n_lengths && status == MSA_OK; i++) {
            status = run_row(j, j->tasks[t], j->lengths[i]);
        }
    }
    if (status == MSA_OK && j->ruler) status = run_row(j, j->options->ruler, 0);
    return status;
}

/* What is finished is printed even when something went wrong behind it. */
static int run_job(job *j)
{
    const eval_options *o = j->options;
    int64_t n_tokens;
    int status = cli_runtime_open(&j->runtime, o->model, &o->engine);
    if (status != CLI_OK) return status;
    msa_status done = read_files(j);
    if (done == MSA_OK) done = needed_tokens(j, &n_tokens);
    if (done != MSA_OK) return cli_complain_library(done);
    status = cli_runtime_start(&j->runtime, n_tokens);
    if (status != CLI_OK) return status;
    done = check_rows(j);
    if (done != MSA_OK) return cli_complain_library(done);
    msa_session_destroy(j->runtime.session); /* the evaluation makes its own */
    j->runtime.session = NULL;
    j->rows = calloc((size_t)(j->n_tasks * j->n_lengths + 1), sizeof(*j->rows));
    if (!j->rows) return cli_complain("out of memory");
    cli_interrupt_catch();
    done = run_rows(j);
    if (done == MSA_ECANCELED) status = CLI_INTERRUPTED;
    if (done != MSA_OK && done != MSA_ECANCELED) status = cli_complain_library(done);
    if (o->json && (status == CLI_OK || j->n_rows > 0)) {
        cli_eval_print_json(o->model, o->engine.attention == 0 ? "sparse" : "dense", o->seed,
                            j->rows, j->n_rows);
    }
    return status;
}

static int run_eval(const void *values)
{
    job j = {.options = values};
    int status = parse(&j);
    if (status == CLI_OK) status = run_job(&j);
    msa_ruler_close(j.ruler);
    cli_runtime_close(&j.runtime);
    msa_free(j.haystack);
    msa_free(j.text);
    for (int32_t i = 0; j.rows && i < j.n_tasks * j.n_lengths; i++) free(j.rows[i].layers);
    free(j.rows);
    free(j.task_words);
    return status;
}

static void list_tasks(void (*row)(const char *name, const char *text))
{
    const char *name, *description;
    for (int32_t i = 0; (name = msa_task_name(i, &description)) != NULL; i++) {
        row(name, description);
    }
    row("perplexity", "loss on a text, by the number of tokens before");
    row("recall", "what each layer's selection captures of full attention on a text");
}

#define AT(member) offsetof(eval_options, member)

static const cli_option arguments[] = {CLI_MODEL_ARGUMENT(eval_options, model), {0}};

static const cli_option options[] = {
    {CLI_GROUP, 0, "What to measure", NULL, 0, NULL, 0, 0, NULL},
    {CLI_TEXT, 0, "task", "NAME[,NAME...]", AT(tasks), NULL, 0, 0, "Tasks from the list below."},
    {CLI_FILE, 0, "ruler", "FILE", AT(ruler), NULL, 0, 0,
     "Samples in RULER's format: JSON lines with input and outputs; every line is asked."},
    {CLI_TEXT, 'l', "length", "N[,N...]", AT(lengths), "8192", 0, 0,
     "Tokens of a sample, answer included; each task is run at each length. 32K is understood."},
    {CLI_COUNT, 'n', "count", "N", AT(count), "50", 1, 1000000, "Samples of each task and length."},
    {CLI_COUNT, 's', "seed", "N", AT(seed), "1", 0, 9007199254740992.0,
     "The same seed makes the same samples everywhere."},
    {CLI_FOLDER, 0, "haystack", "DIR", AT(haystack), NULL, 0, 0,
     "Hide needles in the .txt files of DIR (or in one file) instead of made-up sentences."},
    {CLI_FOLDER, 0, "text", "PATH", AT(text), NULL, 0, 0,
     "Text for perplexity and recall: a .txt file or a folder of them; --haystack's, or else "
     "made-up sentences."},
    {CLI_FLAG, 0, "json", NULL, AT(json), NULL, 0, 0, "Print JSON instead of a table."},
    CLI_ENGINE_ROWS(eval_options, engine),
    {0},
};

const cli_command cli_cmd_eval = {
    .name = "eval",
    .summary = "Score a model on long-text tasks, by length and depth; perplexity by position.",
    .details =
        "Each sample is a text of the given length that ends in a question. The model answers "
        "greedily, up to a line break; the score is the share of the expected strings that the "
        "answer contains, as in RULER. Results differ from RULER's own, whose words and fillers "
        "are others. Columns read/s and write/s are tokens per second of prompts and answers.",
    .examples = "msa eval model --task single-needle,multi-key --length 8K,32K --haystack books\n"
                "msa eval model --task perplexity --text books --length 32K --count 8\n"
                "msa eval model --task passkey --attention dense --json\n"
                "msa eval model --ruler niah_single_1/validation.jsonl",
    .arguments = arguments,
    .options = options,
    .list_title = "Tasks",
    .list = list_tasks,
    .values_bytes = sizeof(eval_options),
    .run = run_eval,
};
