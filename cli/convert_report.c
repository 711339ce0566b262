/* The report of a conversion: the dense model, the untrained conversion and the result, measured on
 * the same text.
 *
 * The tables are written once, as Markdown: into CONVERSION.md and to standard output. The numbers
 * are in conversion.json, too.
 */
#include "convert.h"
#include "interrupt.h"
#include "json_text.h"
#include "output.h"
#include "progress.h"

#include "msa/eval.h"

#include <stdlib.h>
#include <string.h>

#define NEEDLES "single-needle" /* the task of the report */

/* What is known of one model. */
typedef struct measured {
    const char *name, *dir;
    msa_eval_result text, needles;
    int32_t n_layers;
    msa_recall *layers; /* [n_layers]; NULL: it selects nothing */
} measured;

/* What all of them read. */
typedef struct material {
    const convert_options *o;
    msa_context *ctx;
    msa_tokenizer *tokenizer;
    char *text;
    size_t text_bytes;
} material;

/* ---- the material -------------------------------------------------------------------------- */

static void free_material(material *m)
{
    msa_free(m->text);
    msa_tokenizer_close(m->tokenizer);
}

static int read_material(material *m)
{
    const convert_options *o = m->o;
    int64_t n_tokens = 0;
    msa_status status = msa_tokenizer_open(&m->tokenizer, o->source);
    if (status == MSA_OK) status = msa_eval_read_text(&m->text, &m->text_bytes, o->valid);
    if (status == MSA_OK) {
        status = msa_tokenizer_count(m->tokenizer, m->text, m->text_bytes, &n_tokens);
    }
    if (status != MSA_OK) return cli_complain_library(status);
    if (n_tokens >= o->length) return CLI_OK;
    return cli_complain("%s has %lld tokens, the report needs --length %lld of them", o->valid,
                        (long long)n_tokens, (long long)o->length);
}

/* A needle's question must fit into the length: known before hours of training. */
static int check_needles(const material *m)
{
    msa_task_args args;
    msa_task_sample sample;
    if (m->o->needles == 0) return CLI_OK;
    msa_task_args_init(&args);
    msa_task_sample_init(&sample);
    args.task = NEEDLES;
    args.length = m->o->length;
    args.seed = (uint64_t)m->o->seed;
    args.count_tokens = msa_tokenizer_count;
    args.count_user = m->tokenizer;
    args.text = m->text;
    args.text_bytes = m->text_bytes;
    msa_status status = msa_task_make(&sample, &args, 0);
    msa_task_sample_free(&sample);
    if (status == MSA_OK) return CLI_OK;
    return cli_complain("%s; --needles 0 asks none", msa_last_error());
}

int convert_check_text(const convert_options *o)
{
    material m = {.o = o};
    int status = read_material(&m);
    if (status == CLI_OK) status = check_needles(&m);
    free_material(&m);
    return status;
}

/* ---- measuring ----------------------------------------------------------------------------- */

static int32_t watch(void *user, int64_t done, int64_t total)
{
    cli_progress_update(user, done, total);
    return cli_interrupted();
}

static msa_status evaluate(const material *m, msa_engine *engine, msa_model *model, measured *out)
{
    char label[64];
    cli_progress bar;
    msa_eval_args args;
    msa_generation_config generation;
    msa_generation_config_init(&generation);
    msa_status status = msa_model_generation_config(model, &generation);
    (void)snprintf(label, sizeof(label), "measuring %s", out->name);
    cli_progress_begin(&bar, label, "tokens", 0);
    msa_eval_args_init(&args);
    args.engine = engine;
    args.tokenizer = m->tokenizer;
    args.stop_tokens = generation.eos_token_ids;
    args.n_stop_tokens = generation.n_eos;
    args.task = NEEDLES;
    args.length = m->o->length;
    args.count = m->o->windows;
    args.seed = (uint64_t)m->o->seed;
    args.text = m->text;
    args.text_bytes = m->text_bytes;
    args.progress = watch;
    args.user = &bar;
    if (status == MSA_OK) status = msa_eval_perplexity(&out->text, &args);
    if (status == MSA_OK && out->layers) {
        msa_eval_result all;
        msa_eval_result_init(&all);
        status = msa_eval_recall(&all, out->layers, model, &args);
    }
    args.count = m->o->needles;
    if (status == MSA_OK && args.count > 0) status = msa_eval_task(&out->needles, &args);
    cli_progress_clear();
    return status;
}

/* An engine for the model, with room for the text's pieces. */
static msa_status start(const material *m, msa_model *model, msa_engine **engine)
{
    msa_engine_args args;
    msa_engine_args_init(&args);
    args.activation_dtype = m->o->dtype ? MSA_DTYPE_F32 : MSA_DTYPE_BF16;
    args.k_dtype = args.v_dtype = args.k_index_dtype = args.activation_dtype;
    args.max_tokens = m->o->length;
    return msa_engine_create(engine, m->ctx, model, &args);
}

static int measure(const material *m, measured *out)
{
    msa_model *model = NULL;
    msa_engine *engine = NULL;
    msa_model_info info;
    int result = CLI_OK;
    msa_model_info_init(&info);
    msa_eval_result_init(&out->text);
    msa_eval_result_init(&out->needles);
    msa_status status = msa_model_open(&model, m->ctx, out->dir);
    if (status == MSA_OK) status = msa_model_get_info(model, &info);
    if (status == MSA_OK) status = start(m, model, &engine);
    out->n_layers = info.n_layers;
    if (status == MSA_OK && info.n_sparse_layers > 0) {
        out->layers = calloc((size_t)info.n_layers, sizeof(*out->layers));
        if (!out->layers) result = cli_complain("out of memory");
    }
    if (status == MSA_OK && result == CLI_OK) status = evaluate(m, engine, model, out);
    if (status == MSA_ECANCELED && cli_interrupted()) {
        cli_talk("interrupted; the same command measures again\n");
        result = CLI_INTERRUPTED;
    } else if (status != MSA_OK) {
        result = cli_complain_library(status);
    }
    msa_engine_destroy(engine);
    msa_model_close(model);
    return result;
}

/* ---- Markdown ------------------------------------------------------------------------------ */

static int put_losses(cli_buffer *t, const convert_options *o, const measured *all, int n)
{
    char tokens[32];
    int ok = cli_buffer_print(t, "Loss on %lld pieces of %s tokens that were not trained on",
                              (long long)o->windows, cli_grouped(o->length, tokens)) &&
             cli_buffer_print(
                 t, o->needles ? "; %lld single-needle questions of that length.\n\n" : ".\n\n",
                 (long long)o->needles) &&
             cli_buffer_print(t, "| model | loss, nats | perplexity | needles |\n"
                                 "| --- | --- | --- | --- |\n");
    for (int i = 0; i < n && ok; i++) {
        ok = cli_buffer_print(t, "| %s | %.4f | %.3f | ", all[i].name, all[i].text.loss,
                              all[i].text.perplexity) &&
             (o->needles ? cli_buffer_print(t, "%.1f %% |\n", 100 * all[i].needles.accuracy)
                         : cli_buffer_print(t, "- |\n"));
    }
    return ok;
}

static int put_positions(cli_buffer *t, const measured *all, int n)
{
    char from[32], to[32];
    int ok = cli_buffer_print(t, "\nLoss by the number of tokens before.\n\n| tokens before |");
    for (int i = 0; i < n && ok; i++) ok = cli_buffer_print(t, " %s |", all[i].name);
    ok = ok && cli_buffer_print(t, "\n| --- |");
    for (int i = 0; i < n && ok; i++) ok = cli_buffer_print(t, " --- |");
    for (int32_t b = 0; b < all[0].text.n_bins && ok; b++) {
        const msa_eval_bin *bin = &all[0].text.bins[b];
        ok = cli_buffer_print(t, "\n| %s to %s |", cli_grouped((int64_t)bin->from, from),
                              cli_grouped((int64_t)bin->to - 1, to));
        for (int i = 0; i < n && ok; i++) {
            ok = cli_buffer_print(t, " %.4f |", all[i].text.bins[b].loss);
        }
    }
    return ok && cli_buffer_print(t, "\n");
}

/* "0.412, 0.903": untrained, then trained; one number without training. */
static int put_pair(cli_buffer *t, double first, double last, int trained)
{
    return trained ? cli_buffer_print(t, " %.3f, %.3f |", first, last)
                   : cli_buffer_print(t, " %.3f |", first);
}

static int put_recall(cli_buffer *t, const measured *first, const measured *last)
{
    int trained = first != last;
    int ok = cli_buffer_print(t, "\nThe selection against full attention, layer by layer%s.\n\n",
                              trained ? ": untrained, then trained" : "") &&
             cli_buffer_print(t, "| layer | block recall | score recall | captured mass | oracle "
                                 "ratio |\n| --- | --- | --- | --- | --- |\n");
    for (int32_t i = 0; i < last->n_layers && ok; i++) {
        const msa_recall *a = &first->layers[i], *b = &last->layers[i];
        if (b->n_rows < 0) {
            ok = cli_buffer_print(t, "| %d | full attention | | | |\n", (int)i);
            continue;
        }
        ok = cli_buffer_print(t, "| %d |", (int)i) &&
             put_pair(t, a->block_recall, b->block_recall, trained) &&
             put_pair(t, a->score_recall, b->score_recall, trained) &&
             put_pair(t, a->captured_mass, b->captured_mass, trained) &&
             put_pair(t, a->oracle_ratio, b->oracle_ratio, trained) && cli_buffer_print(t, "\n");
    }
    return ok;
}

static int put_heading(cli_buffer *t, const convert_options *o)
{
    return cli_buffer_print(t, "# Conversion of ") &&
           cli_buffer_add(t, o->source, strlen(o->source)) &&
           cli_buffer_print(t,
                            "\n\nBlocks of %lld tokens, %lld kept per token and group; %lld steps "
                            "of warm-up, %lld with\nthe selection on, %lld tokens each in "
                            "sequences of %lld.\n\n",
                            (long long)o->block_size, (long long)o->topk, (long long)o->steps,
                            (long long)o->sparse_steps, (long long)o->step_tokens,
                            (long long)o->length);
}

/* ---- JSON ---------------------------------------------------------------------------------- */

static int json_string(cli_buffer *t, const char *string)
{
    return cli_add_json_string(t, string, strlen(string));
}

static int json_layers(cli_buffer *t, const measured *one)
{
    int ok = cli_buffer_print(t, ",\n   \"layers\": [");
    for (int32_t i = 0; i < one->n_layers && ok; i++) {
        const msa_recall *r = &one->layers[i];
        ok = cli_buffer_print(t, "%s\n    {\"layer\": %d, \"selects\": %s", i ? "," : "", (int)i,
                              r->n_rows < 0 ? "false" : "true");
        if (ok && r->n_rows >= 0) {
            ok = cli_buffer_print(t,
                                  ", \"rows\": %lld, \"block_recall\": %.6f, \"score_recall\": "
                                  "%.6f, \"captured_mass\": %.6f, \"oracle_ratio\": %.6f",
                                  (long long)r->n_rows, r->block_recall, r->score_recall,
                                  r->captured_mass, r->oracle_ratio);
        }
        ok = ok && cli_buffer_print(t, "}");
    }
    return ok && cli_buffer_print(t, "]");
}

static int json_model(cli_buffer *t, const convert_options *o, const measured *one)
{
    int ok = cli_buffer_print(t, "  {\"model\": ") && json_string(t, one->name) &&
             cli_buffer_print(t, ", \"folder\": ") && json_string(t, one->dir) &&
             cli_buffer_print(t, ",\n   \"loss\": %.6f, \"perplexity\": %.6f", one->text.loss,
                              one->text.perplexity);
    if (ok && o->needles) {
        ok = cli_buffer_print(t, ", \"needle_accuracy\": %.6f", one->needles.accuracy);
    }
    ok = ok && cli_buffer_print(t, ",\n   \"positions\": [");
    for (int32_t b = 0; b < one->text.n_bins && ok; b++) {
        const msa_eval_bin *bin = &one->text.bins[b];
        ok = cli_buffer_print(t,
                              "%s\n    {\"from\": %.0f, \"to\": %.0f, \"count\": %lld, "
                              "\"loss\": %.6f}",
                              b ? "," : "", bin->from, bin->to, (long long)bin->count, bin->loss);
    }
    ok = ok && cli_buffer_print(t, "]");
    if (ok && one->layers) ok = json_layers(t, one);
    return ok && cli_buffer_print(t, "}");
}

static int put_json(cli_buffer *t, const convert_options *o, const measured *all, int n)
{
    int ok = cli_buffer_print(t,
                              "{\"block_size\": %lld, \"topk_blocks\": %lld, \"steps\": %lld, "
                              "\"sparse_steps\": %lld,\n \"step_tokens\": %lld, \"length\": %lld, "
                              "\"windows\": %lld, \"needles\": %lld,\n \"models\": [\n",
                              (long long)o->block_size, (long long)o->topk, (long long)o->steps,
                              (long long)o->sparse_steps, (long long)o->step_tokens,
                              (long long)o->length, (long long)o->windows, (long long)o->needles);
    for (int i = 0; i < n && ok; i++) {
        ok = json_model(t, o, &all[i]) && cli_buffer_print(t, i + 1 < n ? ",\n" : "\n");
    }
    return ok && cli_buffer_print(t, " ]}\n");
}

/* ---- the whole ----------------------------------------------------------------------------- */

static int write_reports(const convert_options *o, const measured *all, int n)
{
    char path[CONVERT_PATH_BYTES];
    cli_buffer tables = {0}, heading = {0}, json = {0};
    int ok = put_losses(&tables, o, all, n) && put_positions(&tables, all, n) &&
             put_recall(&tables, &all[1], &all[n - 1]) && put_heading(&heading, o) &&
             cli_buffer_add(&heading, tables.data, tables.n) && put_json(&json, o, all, n);
    int status = ok ? CLI_OK : cli_complain("out of memory");
    if (status == CLI_OK) {
        cli_write(tables.data, tables.n);
        status = convert_path(path, o->out, "CONVERSION.md") ? convert_write(path, &heading)
                                                             : CLI_FAILED;
    }
    if (status == CLI_OK) {
        status =
            convert_path(path, o->out, "conversion.json") ? convert_write(path, &json) : CLI_FAILED;
    }
    cli_buffer_free(&tables);
    cli_buffer_free(&heading);
    cli_buffer_free(&json);
    return status;
}

int convert_report(const convert_options *o, msa_context *ctx, const char *untrained)
{
    material m = {.o = o, .ctx = ctx};
    measured all[3] = {{.name = "dense", .dir = o->source},
                       {.name = "untrained", .dir = untrained ? untrained : o->out},
                       {.name = "converted", .dir = o->out}};
    int n = untrained ? 3 : 2;
    int status = read_material(&m);
    for (int i = 0; i < n && status == CLI_OK; i++) status = measure(&m, &all[i]);
    if (status == CLI_OK) status = write_reports(o, all, n);
    for (int i = 0; i < n; i++) free(all[i].layers);
    free_material(&m);
    return status;
}
