/* OUTPUT/curves.svg: loss, index loss and recall over the steps, drawn from the log. */
#include "train/trainer.h"

#include "base/alloc.h"
#include "base/error.h"
#include "model/files.h"
#include "train/folders.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LOG_MAX_BYTES ((size_t)1 << 32)
#define WIDTH         720.0
#define HEIGHT        220.0
#define LEFT          70.0
#define GAP           70.0
#define MAX_POINTS    1440 /* of a curve: two a pixel */

/* A curve is a key of one kind of line; of a list the mean of its items. */
typedef struct curve {
    const char *kind, *key, *color, *label;
    double *x, *y;
    int64_t n, capacity;
} curve;

typedef struct panel {
    const char *title;
    int32_t n_curves;
    curve curves[3];
} panel;

static const panel panels[] = {
    {"loss, nats per token",
     2,
     {{.kind = "step", .key = "loss", .color = "#2c5d9b", .label = "training"},
      {.kind = "validation", .key = "validation_loss", .color = "#c0392b", .label = "validation"}}},
    {"KL of the index branches, mean over layers",
     1,
     {{.kind = "step", .key = "index_loss", .color = "#2c5d9b", .label = "training"}}},
    {"recall, mean over layers",
     3,
     {{.kind = "validation", .key = "oracle_ratio", .color = "#c0392b", .label = "oracle ratio"},
      {.kind = "validation", .key = "score_recall", .color = "#2c5d9b", .label = "score recall"},
      {.kind = "validation", .key = "block_recall", .color = "#3a7d44", .label = "block recall"}}},
};
#define N_PANELS ((int32_t)(sizeof(panels) / sizeof(panels[0])))

/* ---- reading the log ---------------------------------------------------------------------- */

static double value_of(const msa__json *value)
{
    double sum = 0, x;
    int32_t n = 0;
    if (!value) return NAN;
    if (value->type == MSA__JSON_NUMBER)
        return msa__json_double(value, &x) == MSA_OK ? x : (double)NAN;
    MSA__JSON_EACH(item, value)
    {
        if (item->type != MSA__JSON_NUMBER || msa__json_double(item, &x) != MSA_OK) continue;
        sum += x;
        n++;
    }
    return n ? sum / n : (double)NAN;
}

static msa_status add_point(curve *c, double x, double y)
{
    if (c->n == c->capacity) {
        int64_t capacity = c->capacity ? 2 * c->capacity : 256;
        double *both = malloc((size_t)(2 * capacity) * sizeof(*both));
        if (!both) return MSA_FAIL(MSA_ENOMEM, "train: no memory for the points of a curve");
        if (c->n) {
            memcpy(both, c->x, (size_t)c->n * sizeof(*both));
            memcpy(both + capacity, c->y, (size_t)c->n * sizeof(*both));
        }
        free(c->x);
        c->x = both;
        c->y = both + capacity;
        c->capacity = capacity;
    }
    c->x[c->n] = x;
    c->y[c->n++] = y;
    return MSA_OK;
}

static msa_status read_line(const msa__json *root, panel *drawn)
{
    const msa__json *kind = msa__json_get(root, "kind");
    double step = value_of(msa__json_get(root, "step"));
    for (int32_t p = 0; kind && p < N_PANELS; p++) {
        for (int32_t i = 0; i < drawn[p].n_curves; i++) {
            curve *c = &drawn[p].curves[i];
            if (!msa__json_equals(kind, c->kind)) continue;
            double y = value_of(msa__json_get(root, c->key));
            if (isfinite(y)) MSA_TRY(add_point(c, step, y));
        }
    }
    return MSA_OK;
}

static msa_status read_log(const char *output, panel *drawn)
{
    char path[MSA__PATH_BYTES], *text;
    size_t bytes;
    const msa_allocator *allocator = &msa__default_allocator;
    msa_status status = MSA_OK;
    MSA_TRY(msa__path_join(path, sizeof(path), output, "log.jsonl"));
    MSA_TRY(msa__file_read(path, LOG_MAX_BYTES, allocator, &text, &bytes));
    for (size_t at = 0; at < bytes && status == MSA_OK;) {
        const char *end = memchr(text + at, '\n', bytes - at);
        const msa__json *root;
        if (!end) break;
        size_t n = (size_t)(end - text) - at;
        status = msa__json_parse(&root, NULL, path, text + at, n);
        if (status != MSA_OK) break;
        status = read_line(root, drawn);
        msa__json_free(root);
        at += n + 1;
    }
    allocator->free(allocator->user, text, bytes + 1);
    return status;
}

/* ---- drawing ------------------------------------------------------------------------------ */

__attribute__((format(printf, 2, 3))) static void add(msa__text *svg, const char *format, ...)
{
    char line[512];
    va_list list;
    va_start(list, format);
    (void)vsnprintf(line, sizeof(line), format, list);
    va_end(list);
    msa__text_puts(svg, line);
}

typedef struct frame {
    double top, x0, x1, y0, y1;
} frame;

static double at_x(const frame *f, double x)
{
    return LEFT + WIDTH * (x - f->x0) / (f->x1 - f->x0);
}

static double at_y(const frame *f, double y)
{
    return f->top + HEIGHT * (f->y1 - y) / (f->y1 - f->y0);
}

/* A round distance between about five lines. */
static double choose_step(double range)
{
    double power = pow(10, floor(log10(range / 5))), part = range / 5 / power;
    return power * (part < 1.5 ? 1 : part < 3.5 ? 2 : part < 7.5 ? 5 : 10);
}

static int32_t measure(const panel *p, frame *f)
{
    f->x0 = f->y0 = INFINITY;
    f->x1 = f->y1 = -INFINITY;
    for (int32_t i = 0; i < p->n_curves; i++) {
        for (int64_t k = 0; k < p->curves[i].n; k++) {
            f->x0 = fmin(f->x0, p->curves[i].x[k]);
            f->x1 = fmax(f->x1, p->curves[i].x[k]);
            f->y0 = fmin(f->y0, p->curves[i].y[k]);
            f->y1 = fmax(f->y1, p->curves[i].y[k]);
        }
    }
    if (f->x1 < f->x0) return 0;
    if (f->x1 - f->x0 < 1) f->x1 = f->x0 + 1;
    if (f->y1 - f->y0 < 1e-9 * (1 + fabs(f->y1))) f->y1 = f->y0 + 1e-3 * (1 + fabs(f->y0));
    return 1;
}

static void draw_axes(msa__text *svg, const panel *p, const frame *f)
{
    double step = choose_step(f->y1 - f->y0);
    add(svg, "<text x=\"%.0f\" y=\"%.1f\">%s", LEFT, f->top - 10, p->title);
    for (int32_t i = 0; i < p->n_curves; i++) {
        add(svg, " <tspan dx=\"12\" fill=\"%s\">%s</tspan>", p->curves[i].color,
            p->curves[i].label);
    }
    add(svg,
        "</text>\n<rect x=\"%.0f\" y=\"%.1f\" width=\"%.0f\" height=\"%.0f\" fill=\"none\" "
        "stroke=\"#444\"/>\n",
        LEFT, f->top, WIDTH, HEIGHT);
    for (double y = ceil(f->y0 / step) * step; y <= f->y1; y += step) {
        add(svg, "<path d=\"M%.0f %.1fh%.0f\" stroke=\"#ddd\"/>\n", LEFT, at_y(f, y), WIDTH);
        add(svg, "<text x=\"%.0f\" y=\"%.1f\" text-anchor=\"end\">%.4g</text>\n", LEFT - 6,
            at_y(f, y) + 4, fabs(y) < 1e-9 * step ? 0 : y);
    }
    step = fmax(1, choose_step(f->x1 - f->x0));
    for (double x = ceil(f->x0 / step) * step; x <= f->x1; x += step) {
        add(svg, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"middle\">%.0f</text>\n", at_x(f, x),
            f->top + HEIGHT + 16, x);
    }
}

/* Many points are drawn as means of equally many. */
static void draw_curve(msa__text *svg, const curve *c, const frame *f)
{
    int64_t group = (c->n + MAX_POINTS - 1) / MAX_POINTS;
    if (c->n == 0) return;
    add(svg, "<path fill=\"none\" stroke=\"%s\" stroke-width=\"1.5\" d=\"", c->color);
    for (int64_t at = 0; at < c->n; at += group) {
        int64_t n = c->n - at < group ? c->n - at : group;
        double x = 0, y = 0;
        for (int64_t k = at; k < at + n; k++) {
            x += c->x[k] / (double)n;
            y += c->y[k] / (double)n;
        }
        add(svg, "%s%.1f %.1f", at ? "L" : "M", at_x(f, x), at_y(f, y));
    }
    add(svg, "\"/>\n");
    if (c->n > 60) return;
    for (int64_t k = 0; k < c->n; k++) {
        add(svg, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"2\" fill=\"%s\"/>\n", at_x(f, c->x[k]),
            at_y(f, c->y[k]), c->color);
    }
}

static void draw(msa__text *svg, const panel *drawn)
{
    frame f = {.top = 40};
    msa__text body = {0};
    for (int32_t p = 0; p < N_PANELS; p++) {
        if (!measure(&drawn[p], &f)) continue;
        draw_axes(&body, &drawn[p], &f);
        for (int32_t i = 0; i < drawn[p].n_curves; i++) draw_curve(&body, &drawn[p].curves[i], &f);
        f.top += HEIGHT + GAP;
    }
    add(svg,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%.0f\" height=\"%.0f\" "
        "font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%%\" height=\"100%%\" "
        "fill=\"white\"/>\n",
        LEFT + WIDTH + 30, f.top);
    msa__text_add(svg, body.bytes, body.n);
    if (body.status != MSA_OK) svg->status = body.status;
    msa__text_free(&body);
    add(svg, "</svg>\n");
}

msa_status msa__curves_draw(const char *output)
{
    char path[MSA__PATH_BYTES];
    panel drawn[sizeof(panels) / sizeof(panels[0])];
    msa__text svg = {0};
    memcpy(drawn, panels, sizeof(drawn));
    msa_status status = read_log(output, drawn);
    if (status == MSA_OK) {
        draw(&svg, drawn);
        status = svg.status;
    }
    if (status == MSA_OK) status = msa__path_join(path, sizeof(path), output, "curves.svg");
    if (status == MSA_OK) status = msa__file_write(path, svg.bytes, svg.n);
    msa__text_free(&svg);
    for (int32_t p = 0; p < N_PANELS; p++) {
        for (int32_t i = 0; i < drawn[p].n_curves; i++) free(drawn[p].curves[i].x);
    }
    return status;
}
