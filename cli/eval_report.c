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
    if (predicts(r)) {
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
