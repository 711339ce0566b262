/* A plot of cost against context, as SVG text written by hand. */
#ifndef CLI_BENCH_PLOT_H
#define CLI_BENCH_PLOT_H

#include <stdint.h>
#include <stdio.h>

typedef struct bench_point {
    int32_t is_prefill;
    double context;          /* tokens */
    double dense_us, msa_us; /* per query token */
    double dense_to_msa;
} bench_point;

/* Decode on the left, prefill on the right, both axes logarithmic. Returns 0 when writing fails. */
int bench_plot(FILE *file, const bench_point *points, int32_t n, const char *subtitle);

#endif
