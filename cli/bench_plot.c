/* See bench_plot.h. */
#include "bench_plot.h"

#include <math.h>

#define WIDTH  420.0
#define HEIGHT 300.0
#define LEFT   70.0
#define TOP    70.0

/* One of the two drawings. */
typedef struct {
    FILE *file;
    double x, log_x0, log_x1, log_y0, log_y1; /* powers of two across, of ten upwards */
} panel;

static double at_x(const panel *p, double context)
{
    return p->x + WIDTH * (log2(context) - p->log_x0) / (p->log_x1 - p->log_x0);
}

static double at_y(const panel *p, double us)
{
    return TOP + HEIGHT * (1 - (log10(us) - p->log_y0) / (p->log_y1 - p->log_y0));
}

static void text(const panel *p, double x, double y, const char *anchor, const char *words)
{
    fprintf(p->file, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\">%s</text>\n", x, y, anchor,
            words);
}

static const char *context_label(double log_context, char *label, size_t bytes)
{
    double k = exp2(log_context) / 1024;
    if (k >= 1024) {
        snprintf(label, bytes, "%.0fM", k / 1024);
    } else {
        snprintf(label, bytes, k >= 1 ? "%.0fK" : "%.2gK", k);
    }
    return label;
}

static void draw_axes(const panel *p, const char *title)
{
    char label[32];
    fprintf(p->file,
            "<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" fill=\"none\" "
            "stroke=\"#444\"/>\n",
            p->x, TOP, WIDTH, HEIGHT);
    text(p, p->x + WIDTH / 2, TOP - 12, "middle", title);
    text(p, p->x + WIDTH / 2, TOP + HEIGHT + 36, "middle", "context, tokens");
    for (double e = p->log_x0; e <= p->log_x1; e++) {
        double x = at_x(p, exp2(e));
        fprintf(p->file, "<path d=\"M%.1f %.1fv%.1f\" stroke=\"#ddd\"/>\n", x, TOP, HEIGHT);
        text(p, x, TOP + HEIGHT + 18, "middle", context_label(e, label, sizeof(label)));
    }
    for (double e = p->log_y0; e <= p->log_y1; e++) {
        double y = at_y(p, pow(10, e));
        fprintf(p->file, "<path d=\"M%.1f %.1fh%.1f\" stroke=\"#ddd\"/>\n", p->x, y, WIDTH);
        snprintf(label, sizeof(label),
                 e < 3   ? "%.0f µs"
                 : e < 6 ? "%.0f ms"
                         : "%.0f s",
                 pow(10, e < 3   ? e
                         : e < 6 ? e - 3
                                 : e - 6));
        text(p, p->x - 6, y + 4, "end", label);
    }
}

static void draw_curve(const panel *p, const bench_point *points, int32_t n, int32_t is_prefill,
                       int msa)
{
    const char *color = msa ? "#c0392b" : "#2c5d9b";
    fprintf(p->file, "<path fill=\"none\" stroke=\"%s\" stroke-width=\"2\" d=\"", color);
    int drawn = 0;
    for (int32_t i = 0; i < n; i++) {
        if (points[i].is_prefill != is_prefill) continue;
        double us = msa ? points[i].msa_us : points[i].dense_us;
        fprintf(p->file, "%s%.1f %.1f", drawn++ ? "L" : "M", at_x(p, points[i].context),
                at_y(p, us));
    }
    fprintf(p->file, "\"/>\n");
    for (int32_t i = 0; i < n; i++) {
        if (points[i].is_prefill != is_prefill) continue;
        double x = at_x(p, points[i].context),
               y = at_y(p, msa ? points[i].msa_us : points[i].dense_us);
        char ratio[32];
        fprintf(p->file, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"3\" fill=\"%s\"/>\n", x, y, color);
        snprintf(ratio, sizeof(ratio), "%.1f×", points[i].dense_to_msa);
        if (msa) text(p, x, y + 16, "middle", ratio);
    }
}

static void draw_panel(FILE *file, const bench_point *points, int32_t n, int32_t is_prefill)
{
    panel p = {file, LEFT + is_prefill * (WIDTH + LEFT + 20), 1e9, -1e9, 1e9, -1e9};
    for (int32_t i = 0; i < n; i++) {
        if (points[i].is_prefill != is_prefill) continue;
        p.log_x0 = fmin(p.log_x0, floor(log2(points[i].context)));
        p.log_x1 = fmax(p.log_x1, ceil(log2(points[i].context)));
        p.log_y0 = fmin(p.log_y0, floor(log10(fmin(points[i].msa_us, points[i].dense_us))));
        p.log_y1 = fmax(p.log_y1, ceil(log10(fmax(points[i].msa_us, points[i].dense_us))));
    }
    if (p.log_x1 < p.log_x0) return; /* no such point */
    if (p.log_x1 == p.log_x0) p.log_x1++;
    if (p.log_y1 == p.log_y0) p.log_y1++;
    draw_axes(&p, is_prefill ? "prefill: cost of a token at the end of the context"
                             : "decode: cost of a token");
    draw_curve(&p, points, n, is_prefill, 0);
    draw_curve(&p, points, n, is_prefill, 1);
}

int bench_plot(FILE *file, const bench_point *points, int32_t n, const char *subtitle)
{
    double width = 2 * (WIDTH + LEFT) + 50, height = TOP + HEIGHT + 60;
    fprintf(file,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%.0f\" height=\"%.0f\" "
            "font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%%\" height=\"100%%\" "
            "fill=\"white\"/>\n",
            width, height);
    fprintf(file,
            "<text x=\"%.0f\" y=\"20\" font-size=\"15\">One attention layer: "
            "<tspan fill=\"#2c5d9b\">dense</tspan> and <tspan fill=\"#c0392b\">MSA</tspan>, with "
            "their ratio</text>\n<text x=\"%.0f\" y=\"38\" fill=\"#666\">%s</text>\n",
            LEFT, LEFT, subtitle);
    draw_panel(file, points, n, 0);
    draw_panel(file, points, n, 1);
    fprintf(file, "</svg>\n");
    return fflush(file) == 0 && !ferror(file);
}
