/* Table and JSON of evaluations; see eval_report.h. */
#include "eval_report.h"

#include "json_text.h"
#include "output.h"
#include "progress.h"

#include <math.h>
#include <string.h>

static int predicts(const msa_eval_result *result)
{
    return result->perplexity > 0;
}

static double rate(int64_t tokens, double seconds)
{
    return seconds > 0 ? (double)tokens / seconds : 0;
}

void cli_eval_print_head(void)
{
    cli_print("%-20s %9s %7s %9s %10s %9s  %s\n", "task", "length", "count", "accuracy", "read/s",
              "write/s", "time");
}

static void print_depths(const msa_eval_result *result)
{
    cli_print("  by depth");
    for (int32_t i = 0; i < result->n_bins; i++) {
        cli_print("  %.0f-%.0f%%: %.0f", 100 * result->bins[i].from, 100 * result->bins[i].to,
                  100 * result->bins[i].accuracy);
    }
    cli_print("\n");
}

static void print_positions(const msa_eval_result *result)
{
    char from[32], to[32], count[32];
    cli_print("  loss %.4f nats, perplexity %.3f\n", result->loss, result->perplexity);
    cli_print("  %21s %12s %9s %11s %9s\n", "tokens before", "predicted", "loss", "perplexity",
              "accuracy");
    for (int32_t i = 0; i < result->n_bins; i++) {
        const msa_eval_bin *bin = &result->bins[i];
        cli_print("  %9s - %9s %12s %9.4f %11.3f %7.1f %%\n", cli_grouped((int64_t)bin->from, from),
                  cli_grouped((int64_t)bin->to - 1, to), cli_grouped(bin->count, count), bin->loss,
                  exp(bin->loss), 100 * bin->accuracy);
    }
}

static void print_recall(const char *name, const msa_recall *r)
{
    char rows[32];
    cli_print("  %-9s %13s %10.3f %13.3f %13.3f %13.3f\n", name, cli_grouped(r->n_rows, rows),
              r->captured_mass, r->block_recall, r->score_recall, r->oracle_ratio);
}

static void print_scan(const char *name, const msa_recall *r)
{
    cli_print("  %-9s %13lld %10.1f %11.2f %% %11.2f %% %11.2f %% %11.2f %%\n", name,
              (long long)r->n_scanned, r->rescored_blocks, 100 * r->rescored, 100 * r->rescored_max,
              100 * r->rescored_random, 100 * r->fp8_recall);
}

/* Eight-bit index keys: blocks that the exact scan scores again, and what fp8 keys would select. */
static void print_scans(const cli_eval_row *row)
{
    cli_print("  %-9s %13s %10s %13s %13s %13s %13s\n", "layer", "scanned rows", "rescored",
              "of all blocks", "most of a row", "random keys", "same with fp8");
    for (int32_t i = 0; i < row->n_layers; i++) {
        char name[16];
        snprintf(name, sizeof(name), "%d", (int)i);
        if (row->layers[i].n_scanned > 0) print_scan(name, &row->layers[i]);
    }
    print_scan("all", &row->result.recall);
}

static void print_layers(const cli_eval_row *row)
{
    cli_print("  %-9s %13s %10s %13s %13s %13s\n", "layer", "rows", "captured", "block recall",
              "score recall", "oracle ratio");
    for (int32_t i = 0; i < row->n_layers; i++) {
        char name[16];
        snprintf(name, sizeof(name), "%d", (int)i);
        if (row->layers[i].n_rows >= 0) print_recall(name, &row->layers[i]);
    }
    print_recall("all", &row->result.recall);
    if (row->result.recall.n_scanned > 0) print_scans(row);
}

void cli_eval_print_row(const cli_eval_row *row)
{
    char length[32], read[32], write[32] = "", time[32];
    const msa_eval_result *r = &row->result;
    cli_grouped((int64_t)(rate(r->read_tokens, r->read_seconds) + 0.5), read);
    if (r->generated_tokens > 0) {
        snprintf(write, sizeof(write), "%.1f", rate(r->generated_tokens, r->generate_seconds));
    }
    cli_print("%-20s %9s %7lld %7.1f %% %10s %9s  %s\n", row->task, cli_grouped(r->length, length),
              (long long)r->count, 100 * r->accuracy, read, write,
              cli_duration(r->read_seconds + r->generate_seconds, time));
    if (row->layers) {
        print_layers(row);
    } else if (predicts(r)) {
        print_positions(r);
    } else if (r->n_bins > 1) {
        print_depths(r);
    }
    cli_flush();
}

/* ---- JSON --------------------------------------------------------------------------------- */

/* JSON has no NaN and no infinity. */
static void print_number(const char *key, double value)
{
    if (isfinite(value)) {
        cli_print(", \"%s\": %.9g", key, value);
    } else {
        cli_print(", \"%s\": null", key);
    }
}

static void print_bins(const msa_eval_result *result)
{
    cli_print(",\n   \"%s\": [", predicts(result) ? "by_position" : "by_depth");
    for (int32_t i = 0; i < result->n_bins; i++) {
        const msa_eval_bin *bin = &result->bins[i];
        cli_print("%s{\"from\": %g, \"to\": %g, \"count\": %lld", i ? ",\n    " : "", bin->from,
                  bin->to, (long long)bin->count);
        print_number("accuracy", bin->accuracy);
        if (predicts(result)) {
            print_number("loss", bin->loss);
            print_number("perplexity", exp(bin->loss));
        }
        cli_print("}");
    }
    cli_print("]");
}

static void print_recall_members(const msa_recall *r)
{
    cli_print("\"rows\": %lld", (long long)r->n_rows);
    print_number("captured_mass", r->captured_mass);
    print_number("block_recall", r->block_recall);
    print_number("score_recall", r->score_recall);
    print_number("oracle_ratio", r->oracle_ratio);
    print_number("block_recall_forced", r->block_recall_forced);
    print_number("score_recall_forced", r->score_recall_forced);
    print_number("oracle_ratio_forced", r->oracle_ratio_forced);
    if (r->n_scanned == 0) return;
    cli_print(", \"n_scanned\": %lld", (long long)r->n_scanned);
    print_number("rescored", r->rescored);
    print_number("rescored_blocks", r->rescored_blocks);
    print_number("rescored_max", r->rescored_max);
    print_number("rescored_random", r->rescored_random);
    print_number("fp8_recall", r->fp8_recall);
}

static void print_recall_json(const cli_eval_row *row)
{
    const char *separator = "";
    cli_print(",\n   ");
    print_recall_members(&row->result.recall);
    cli_print(",\n   \"layers\": [");
    for (int32_t i = 0; i < row->n_layers; i++) {
        if (row->layers[i].n_rows < 0) continue;
        cli_print("%s{\"layer\": %d, ", separator, (int)i);
        print_recall_members(&row->layers[i]);
        cli_print("}");
        separator = ",\n    ";
    }
    cli_print("]");
}

static void print_entry(const cli_eval_row *row)
{
    const msa_eval_result *r = &row->result;
    cli_print("  {\"task\": ");
    cli_write_json_string(row->task, strlen(row->task));
    cli_print(", \"length\": %lld, \"count\": %lld", (long long)r->length, (long long)r->count);
    print_number("accuracy", r->accuracy);
    if (predicts(r)) {
        print_number("loss", r->loss);
        print_number("perplexity", r->perplexity);
    }
    cli_print(",\n   \"read_tokens\": %lld", (long long)r->read_tokens);
    print_number("read_seconds", r->read_seconds);
    cli_print(", \"generated_tokens\": %lld", (long long)r->generated_tokens);
    print_number("generate_seconds", r->generate_seconds);
    if (r->n_bins > 0) print_bins(r);
    if (row->layers) print_recall_json(row);
    cli_print("}");
}

void cli_eval_print_json(const char *model, const char *attention, int64_t seed,
                         const cli_eval_row *rows, int32_t n_rows)
{
    cli_print("{\"model\": ");
    cli_write_json_string(model, strlen(model));
    cli_print(", \"attention\": \"%s\", \"seed\": %lld,\n \"tasks\": [", attention,
              (long long)seed);
    for (int32_t i = 0; i < n_rows; i++) {
        cli_print(i ? ",\n" : "\n");
        print_entry(&rows[i]);
    }
    cli_print("]}\n");
}
