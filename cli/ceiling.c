/* See ceiling.h. */
#include "ceiling.h"

#include "bandwidth.h"
#include "progress.h"

#include "msa/msa.h"

#include <stdlib.h>
#include <string.h>

/* Larger than the caches of any machine or GPU this is likely to run on. */
#define HOST_BYTES   ((size_t)1 << 30)
#define DEVICE_BYTES ((size_t)1 << 28)
#define PASSES       3
#define COPIES       16 /* of a pass: one is too short to be timed */

/* Rows and width of the product: a prompt's chunk, and enough work for a stable time. */
#define HOST_ROWS    512
#define DEVICE_ROWS  8192
#define HOST_WIDTH   4096
#define DEVICE_WIDTH 8192

struct cli_ceiling {
    msa_context *ctx;
    int32_t on_device;
    cli_bandwidth *readers; /* on a host */
    void *buffers[2];       /* on a device */
};

cli_ceiling *cli_ceiling_open(msa_context *ctx)
{
    cli_ceiling *c = calloc(1, sizeof(*c));
    if (!c) return NULL;
    c->ctx = ctx;
    c->on_device = msa_context_uses_device_memory(ctx);
    int opened = 1;
    if (c->on_device) {
        for (int i = 0; i < 2; i++) {
            opened = opened && msa_memory_alloc(ctx, DEVICE_BYTES, &c->buffers[i]) == MSA_OK;
        }
    } else {
        c->readers = cli_bandwidth_open(HOST_BYTES, msa_context_threads(ctx));
        opened = c->readers != NULL;
    }
    if (opened) return c;
    cli_ceiling_close(c);
    return NULL;
}

void cli_ceiling_close(cli_ceiling *c)
{
    if (!c) return;
    cli_bandwidth_close(c->readers);
    for (int i = 0; i < 2; i++) msa_memory_free(c->ctx, c->buffers[i], DEVICE_BYTES);
    free(c);
}

static msa_status copy_pass(const cli_ceiling *c)
{
    msa_status status = MSA_OK;
    for (int i = 0; i < COPIES && status == MSA_OK; i++) {
        status = msa_memory_copy(c->ctx, c->buffers[i % 2], c->buffers[1 - i % 2], DEVICE_BYTES);
    }
    return status == MSA_OK ? msa_context_synchronize(c->ctx) : status;
}

double cli_ceiling_memory(cli_ceiling *c)
{
    double best = 0;
    if (!c->on_device) return cli_bandwidth_measure(c->readers, PASSES);
    for (int pass = 0; pass < PASSES; pass++) {
        double start = cli_seconds();
        if (copy_pass(c) != MSA_OK) return 0;
        double rate = 2.0 * COPIES * (double)DEVICE_BYTES / (cli_seconds() - start);
        if (rate > best) best = rate;
    }
    return best;
}

/* bf16 matrices x [rows, width], w [width, width] and the product, in operator memory. */
typedef struct product {
    int64_t rows, width;
    void *x, *w, *out, *workspace;
    size_t x_bytes, w_bytes, workspace_bytes;
} product;

/* Numbers of both signs near 1; zeros would be multiplied with less power and so faster. */
static msa_status fill(msa_context *ctx, void *matrix, size_t bytes)
{
    uint16_t *numbers = malloc(bytes);
    uint32_t state = 1;
    if (!numbers) return MSA_ENOMEM;
    for (size_t i = 0; i < bytes / sizeof(*numbers); i++) {
        state = state * 1664525u + 1013904223u;
        numbers[i] = (uint16_t)(0x3f00u | (state >> 31) << 15 | (state >> 16 & 0xffu));
    }
    msa_status status = msa_memory_upload(ctx, matrix, numbers, bytes);
    free(numbers);
    return status;
}

static msa_status open_product(msa_context *ctx, product *p, msa_linear_args *args, msa_plan *plan)
{
    p->x_bytes = (size_t)(p->rows * p->width) * 2;
    p->w_bytes = (size_t)(p->width * p->width) * 2;
    msa_status status = msa_memory_alloc(ctx, p->x_bytes, &p->x);
    if (status == MSA_OK) status = msa_memory_alloc(ctx, p->x_bytes, &p->out);
    if (status == MSA_OK) status = msa_memory_alloc(ctx, p->w_bytes, &p->w);
    if (status == MSA_OK) status = fill(ctx, p->x, p->x_bytes);
    if (status == MSA_OK) status = fill(ctx, p->w, p->w_bytes);
    if (status != MSA_OK) return status;
    msa_linear_args_init(args);
    msa_plan_init(plan);
    args->x = msa_tensor_make(p->x, MSA_DTYPE_BF16, 2, p->rows, p->width, 0, 0);
    args->weight.w = msa_tensor_make(p->w, MSA_DTYPE_BF16, 2, p->width, p->width, 0, 0);
    args->out = msa_tensor_make(p->out, MSA_DTYPE_BF16, 2, p->rows, p->width, 0, 0);
    status = msa_linear_plan(ctx, args, plan);
    p->workspace_bytes = plan->workspace_bytes;
    return status == MSA_OK ? msa_memory_alloc(ctx, p->workspace_bytes, &p->workspace) : status;
}

/* The first product of a context prepares; the fastest of the others counts. */
static msa_status time_products(msa_context *ctx, const product *p, const msa_linear_args *args,
                                const msa_plan *plan, double *best)
{
    for (int pass = 0; pass <= PASSES; pass++) {
        double start = cli_seconds();
        msa_status status = msa_linear(ctx, plan, args, p->workspace, p->workspace_bytes);
        if (status == MSA_OK) status = msa_context_synchronize(ctx);
        if (status != MSA_OK) return status;
        double seconds = cli_seconds() - start;
        double rate = 2.0 * (double)p->rows * (double)p->width * (double)p->width / seconds;
        if (pass > 0 && rate > *best) *best = rate;
    }
    return MSA_OK;
}

double cli_ceiling_products(cli_ceiling *c)
{
    msa_linear_args args;
    msa_plan plan;
    double best = 0;
    product p = {.rows = c->on_device ? DEVICE_ROWS : HOST_ROWS,
                 .width = c->on_device ? DEVICE_WIDTH : HOST_WIDTH};
    msa_status status = open_product(c->ctx, &p, &args, &plan);
    if (status == MSA_OK) status = time_products(c->ctx, &p, &args, &plan, &best);
    msa_memory_free(c->ctx, p.x, p.x_bytes);
    msa_memory_free(c->ctx, p.out, p.x_bytes);
    msa_memory_free(c->ctx, p.w, p.w_bytes);
    msa_memory_free(c->ctx, p.workspace, p.workspace_bytes);
    return status == MSA_OK ? best : 0;
}
