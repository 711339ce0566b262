/* Rates of the matrix micro-kernels: each instruction set, and oneDNN beside them when it is built
 * in.
 *
 *     bench_gemm [threads]
 *
 * "tile"    GFLOP/s with operands that stay in the second-level cache, every thread on its own
 * "stream"  GB/s of A read from memory while one panel (a decode step) is multiplied, beside a loop
 *           that only reads
 * "onednn"  one matrix product of the size of a linear layer, weights in oneDNN's own layout
 */
#define _GNU_SOURCE
#include "backend/cpu/isa/kernels.h"
#include "base/alloc.h"
#include "base/numeric.h"
#include "base/threads.h"
#include "bench.h"
#include "bench_onednn.h"

typedef struct {
    const msa__cpu_kernels *kernels; /* NULL: only read A */
    int32_t is_bf16, use_gemv;
    int64_t m, n_panels, k, repeats;
    unsigned char *a; /* [threads][m][k] */
    unsigned char *b; /* panels, shared */
    float *c;         /* [threads][m][16 n_panels] */
    volatile uint64_t sink;
} job;

static uint64_t read_all(const unsigned char *data, size_t bytes)
{
    uint64_t sum[8] = {0};
    for (size_t i = 0; i < bytes; i += 64) {
        for (size_t j = 0; j < 8; j++) {
            uint64_t word;
            memcpy(&word, data + i + 8 * j, 8);
            sum[j] += word;
        }
    }
    return sum[0] + sum[1] + sum[2] + sum[3] + sum[4] + sum[5] + sum[6] + sum[7];
}

static void run_item(void *arg, int64_t item, int32_t thread)
{
    job *w = arg;
    (void)thread;
    int64_t bytes = w->m * w->k * (w->is_bf16 ? 2 : 4);
    const unsigned char *a = w->a + item * bytes;
    float *c = w->c + item * w->m * 16 * w->n_panels;
    if (w->kernels && w->is_bf16) w->kernels->enter();
    for (int64_t r = 0; r < w->repeats; r++) {
        if (!w->kernels) {
            w->sink = read_all(a, (size_t)bytes);
        } else if (w->use_gemv) {
            if (w->is_bf16) {
                w->kernels->gemv_bf16(w->m, 1, w->k, (const uint16_t *)(const void *)a, w->k,
                                      (const uint16_t *)(const void *)w->b, c, 16, 0);
            } else {
                w->kernels->gemv_f32(w->m, 1, w->k, (const float *)(const void *)a, w->k,
                                     (const float *)(const void *)w->b, c, 16, 0);
            }
        } else if (w->is_bf16) {
            w->kernels->gemm_bf16(w->m, w->n_panels, w->k, (const uint16_t *)(const void *)a, w->k,
                                  (const uint16_t *)(const void *)w->b, c, 16 * w->n_panels, 0);
        } else {
            w->kernels->gemm_f32(w->m, w->n_panels, w->k, (const float *)(const void *)a, w->k,
                                 (const float *)(const void *)w->b, c, 16 * w->n_panels, 0);
        }
    }
    if (w->kernels && w->is_bf16) w->kernels->leave();
}

/* Median seconds of seven runs. */
static double measure(msa__pool *pool, job *w, int64_t n_items)
{
    double s[7];
    msa__parallel_for(pool, n_items, run_item, w);
    for (int i = 0; i < 7; i++) {
        double start = wall_s();
        msa__parallel_for(pool, n_items, run_item, w);
        s[i] = wall_s() - start;
        for (int j = i; j > 0 && s[j] < s[j - 1]; j--) {
            double t = s[j];
            s[j] = s[j - 1];
            s[j - 1] = t;
        }
    }
    return s[3];
}

static void tile_rates(msa__pool *pool, job w, const char *name)
{
    static const int64_t panels[] = {1, 2, 8};
    int32_t threads = msa__pool_threads(pool);
    w.m = 128;
    w.k = 512;
    for (w.is_bf16 = 0; w.is_bf16 < 2; w.is_bf16++) {
        for (int i = 0; i < 3; i++) {
            w.n_panels = panels[i];
            double flops = 2.0 * (double)(w.m * w.k * 16 * w.n_panels * threads);
            w.repeats = 2 + (int64_t)(2e9 / flops);
            double seconds = measure(pool, &w, threads);
            printf("tile   %-8s %s m 128 n %3d k 512   %8.0f GFLOP/s\n", name,
                   w.is_bf16 ? "bf16" : "f32 ", (int)(16 * w.n_panels),
                   flops * (double)w.repeats / seconds * 1e-9);
        }
    }
}

static void stream_rates(msa__pool *pool, job w, const char *name)
{
    for (w.is_bf16 = 0; w.is_bf16 < 2; w.is_bf16++) {
        int64_t row_bytes = w.is_bf16 ? 2 : 4;
        w.k = 4096;
        w.m = 32;
        w.n_panels = 1;
        w.repeats = 1;
        int64_t n_items = ((int64_t)256 << 20) / (w.m * w.k * row_bytes);
        for (w.use_gemv = 0; w.use_gemv < (w.kernels ? 2 : 1); w.use_gemv++) {
            double seconds = measure(pool, &w, n_items);
            printf("stream %-8s %s %-4s k 4096         %8.1f GB/s\n", name,
                   w.is_bf16 ? "bf16" : "f32 ", w.kernels ? w.use_gemv ? "gemv" : "gemm" : "read",
                   (double)(n_items * w.m * w.k * row_bytes) / seconds * 1e-9);
        }
    }
}

int main(int argc, char **argv)
{
    int32_t threads = argc > 1 ? atoi(argv[1]) : msa__available_cores();
    msa__pool *pool;
    job w = {0};
    w.a = aligned_alloc(64, (size_t)256 << 20);
    w.b = aligned_alloc(64, (size_t)16 << 20);
    w.c = aligned_alloc(64, (size_t)64 << 20);
    if (threads < 1 || !w.a || !w.b || !w.c ||
        msa__pool_create(&pool, &msa__default_allocator, threads) != MSA_OK) {
        fprintf(stderr, "bench_gemm: cannot start\n");
        return 1;
    }
    for (size_t i = 0; i < (size_t)128 << 20; i++) {
        uint16_t half = f32_to_bf16((float)(i % 61) * 0.03f - 0.913f);
        memcpy(w.a + 2 * i, &half, 2);
        if (i < (size_t)8 << 20) memcpy(w.b + 2 * i, &half, 2);
    }
    memset(w.c, 0, (size_t)64 << 20);
    printf("threads %d\n", threads);
    stream_rates(pool, w, "memory");
    for (int i = 0; msa__cpu_kernel_tables[i]; i++) {
        w.kernels = msa__cpu_kernel_tables[i];
        if (!w.kernels->usable()) continue;
        tile_rates(pool, w, w.kernels->name);
        stream_rates(pool, w, w.kernels->name);
    }
    bench_onednn(512, 4096, 4096);
    msa__pool_destroy(pool);
    free(w.a);
    free(w.b);
    free(w.c);
    return 0;
}
