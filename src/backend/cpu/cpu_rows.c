/* See cpu_rows.h. */
#include "backend/cpu/cpu_rows.h"

#include "base/overflow.h"

/* About 5 microseconds of work: several times what waking the threads costs. */
#define ITEM_ELEMENTS 16384

typedef struct rows_job {
    msa__rows_fn fn;
    const void *args;
    const msa__cpu_kernels *kernels;
    int64_t n_rows, rows_per_item;
} rows_job;

static void run_item(void *arg, int64_t item, int32_t thread)
{
    (void)thread;
    const rows_job *job = arg;
    int64_t first = item * job->rows_per_item, last = first + job->rows_per_item;
    job->fn(job->args, job->kernels, first, last < job->n_rows ? last : job->n_rows);
}

void msa__cpu_for_rows(msa_context *ctx, int64_t n_rows, int64_t row_elements, msa__rows_fn fn,
                       const void *args)
{
    int64_t rows_per_item = row_elements < ITEM_ELEMENTS ? ITEM_ELEMENTS / row_elements : 1;
    rows_job job = {fn, args, ctx->cpu_kernels, n_rows, rows_per_item};
    msa__parallel_for(ctx->pool, msa__ceil_div(n_rows, rows_per_item), run_item, &job);
}

void msa__cpu_convert(const msa__cpu_kernels *kernels, void *dst, msa_dtype dst_dtype,
                      const void *src, msa_dtype src_dtype, int64_t n)
{
    if (dst_dtype == src_dtype) {
        if (dst != src) memcpy(dst, src, (size_t)n * msa_dtype_bytes(dst_dtype));
        return;
    }
    float buffer[MSA__CHUNK];
    msa_tensor from = {.data = (void *)(uintptr_t)src, .dtype = src_dtype};
    msa_tensor to = {.data = dst, .dtype = dst_dtype};
    for (int64_t i = 0; i < n; i += MSA__CHUNK) {
        int64_t length = chunk_length(n - i);
        const float *values = load_chunk(kernels, &from, i, length, buffer);
        kernels->from_f32(element_at(&to, i), dst_dtype, values, length);
    }
}
