/* See bench_ceiling.h. */
#include "bench_ceiling.h"

#include "bench_data.h"
#include "progress.h"

#include "msa/layer.h"

#include <pthread.h>
#include <stdlib.h>

#define READ_BYTES ((size_t)1 << 30) /* all threads together: more than the caches hold */
#define READ_RUNS  7
#define GEMM_RUNS  9

typedef struct {
    pthread_t thread;
    const uint64_t *words;
    size_t n_words;
    uint64_t sum; /* so that the reads are not removed */
} reader;

static void *read_all(void *arg)
{
    reader *self = arg;
    uint64_t a = 0, b = 0, c = 0, d = 0;
    for (size_t i = 0; i + 32 <= self->n_words; i += 32) {
        const uint64_t *w = self->words + i;
        for (int k = 0; k < 32; k += 4) { /* becomes vector loads */
            a ^= w[k];
            b ^= w[k + 1];
            c ^= w[k + 2];
            d ^= w[k + 3];
        }
    }
    self->sum = a ^ b ^ c ^ d;
    return NULL;
}

/* Seconds of one pass of all threads, negative when a thread cannot be started. */
static double read_pass(reader *readers, int32_t n)
{
    double start = cli_seconds();
    int32_t started = 1;
    while (started < n &&
           pthread_create(&readers[started].thread, NULL, read_all, &readers[started]) == 0) {
        started++;
    }
    read_all(&readers[0]);
    for (int32_t i = 1; i < started; i++) pthread_join(readers[i].thread, NULL);
    return started == n ? cli_seconds() - start : -1;
}

static msa_status measure_read(int32_t n_threads, double *gbytes_s)
{
    reader *readers = calloc((size_t)n_threads, sizeof(*readers));
    size_t bytes = READ_BYTES, share = READ_BYTES / (size_t)n_threads / 256 * 256;
    unsigned char *memory = readers ? bench_alloc(bytes) : NULL;
    bench_pool pool = {0};
    msa_status status = MSA_ENOMEM;
    *gbytes_s = 0;
    if (!memory || !bench_pool_create(&pool, MSA_DTYPE_BF16, 1)) goto done;
    bench_pool_fill(&pool, memory, (int64_t)(bytes / 2));
    for (int32_t i = 0; i < n_threads; i++) {
        readers[i].words = (const uint64_t *)(const void *)(memory + share * (size_t)i);
        readers[i].n_words = share / sizeof(uint64_t);
    }
    for (int run = 0; run < READ_RUNS; run++) {
        double seconds = read_pass(readers, n_threads);
        if (seconds <= 0) goto done;
        double rate = (double)(share * (size_t)n_threads) / seconds * 1e-9;
        if (rate > *gbytes_s) *gbytes_s = rate;
    }
    status = MSA_OK;
done:
    if (pool.bytes) bench_pool_destroy(&pool);
    bench_free(memory, bytes);
    free(readers);
    return status;
}

/* Our own linear layer, where there is no other library to compare with. */
static msa_status measure_linear(msa_context *ctx, double *gflop_s)
{
    enum { TOKENS = 2048, IN = 2048, OUT = 2048 };
    const size_t x_bytes = (size_t)TOKENS * IN * 2, w_bytes = (size_t)OUT * IN * 2;
    const size_t out_bytes = (size_t)TOKENS * OUT * 4;
    bench_pool pool = {0};
    void *x = bench_alloc(x_bytes), *w = bench_alloc(w_bytes), *out = bench_alloc(out_bytes);
    void *workspace = NULL;
    size_t workspace_bytes = 0;
    msa_status status = MSA_ENOMEM;
    *gflop_s = 0;
    if (!x || !w || !out || !bench_pool_create(&pool, MSA_DTYPE_BF16, 2)) goto done;
    bench_pool_fill(&pool, x, (int64_t)TOKENS * IN);
    bench_pool_fill(&pool, w, (int64_t)OUT * IN);
    msa_linear_args args;
    msa_plan plan;
    msa_linear_args_init(&args);
    msa_plan_init(&plan);
    args.x = msa_tensor_make(x, MSA_DTYPE_BF16, 2, TOKENS, IN, 1, 1);
    args.weight.w = msa_tensor_make(w, MSA_DTYPE_BF16, 2, OUT, IN, 1, 1);
    args.out = msa_tensor_make(out, MSA_DTYPE_F32, 2, TOKENS, OUT, 1, 1);
    status = msa_linear_plan(ctx, &args, &plan);
    if (status != MSA_OK) goto done;
    workspace_bytes = plan.workspace_bytes + 64;
    workspace = bench_alloc(workspace_bytes);
    if (!workspace) status = MSA_ENOMEM;
    for (int run = 0; run < GEMM_RUNS && status == MSA_OK; run++) {
        double start = cli_seconds();
        status = msa_linear(ctx, &plan, &args, workspace, plan.workspace_bytes);
        double rate = 2.0 * TOKENS * IN * OUT / (cli_seconds() - start) * 1e-9;
        if (rate > *gflop_s) *gflop_s = rate;
    }
done:
    bench_free(workspace, workspace_bytes);
    bench_free(x, x_bytes);
    bench_free(w, w_bytes);
    bench_free(out, out_bytes);
    if (pool.bytes) bench_pool_destroy(&pool);
    return status;
}

msa_status bench_measure_ceiling(msa_context *ctx, bench_ceiling *ceiling)
{
    int32_t n_threads = msa_context_threads(ctx);
    msa_status status = measure_read(n_threads, &ceiling->read_gbytes_s);
    if (status != MSA_OK) return status;
    ceiling->gemm_source = "oneDNN";
    ceiling->gemm_gflop_s = bench_onednn_rate(n_threads);
    if (ceiling->gemm_gflop_s > 0) return MSA_OK;
    ceiling->gemm_source = "msa_linear";
    return measure_linear(ctx, &ceiling->gemm_gflop_s);
}
