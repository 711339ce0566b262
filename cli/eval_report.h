/* Results of `msa eval`: a table as they come, or JSON at the end. */
#ifndef CLI_EVAL_REPORT_H
#define CLI_EVAL_REPORT_H

#include "msa/msa.h"

/* What one line of the table, one entry of the JSON, is about. */
typedef struct cli_eval_row {
    const char *task;
    msa_eval_result result;
    msa_recall *layers; /* [n_layers] of a recall row; NULL otherwise */
    int32_t n_layers;
} cli_eval_row;

void cli_eval_print_head(void);
void cli_eval_print_row(const cli_eval_row *row);

/* {"model": …, "attention": …, "seed": …, "tasks": […]} on standard output. */
void cli_eval_print_json(const char *model, const char *attention, int64_t seed,
                         const cli_eval_row *rows, int32_t n_rows);

#endif
