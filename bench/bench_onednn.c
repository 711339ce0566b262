/* See bench_onednn.h. All calls of oneDNN's C API (version 2) are in this file. */
#define _GNU_SOURCE
#include "bench.h"
#include "bench_onednn.h"

#if defined(HAVE_ONEDNN)
#    include <oneapi/dnnl/dnnl.h>

#    define TRY(call)                                                                              \
        do {                                                                                       \
            if ((call) != dnnl_success) return -1.0;                                               \
        } while (0)

/* Memory filled with small finite values, in the layout the primitive asked for. */
static dnnl_status_t new_memory(dnnl_memory_t *memory, const dnnl_memory_desc_t *desc,
                                dnnl_engine_t engine)
{
    void *data;
    dnnl_status_t status = dnnl_memory_create(memory, desc, engine, DNNL_MEMORY_ALLOCATE);
    if (status != dnnl_success) return status;
    status = dnnl_memory_get_data_handle(*memory, &data);
    if (status == dnnl_success) memset(data, 0x3c, dnnl_memory_desc_get_size(desc));
    return status;
}

/* Best seconds of nine runs, negative when oneDNN refuses. */
static double run_matmul(dnnl_data_type_t type, int64_t m, int64_t n, int64_t k)
{
    dnnl_engine_t engine;
    dnnl_stream_t stream;
    dnnl_memory_desc_t a, b, c;
    dnnl_matmul_desc_t matmul;
    dnnl_primitive_desc_t desc;
    dnnl_primitive_t primitive;
    dnnl_memory_t memory[3];
    const dnnl_dims_t a_dims = {m, k}, b_dims = {k, n}, c_dims = {m, n};
    TRY(dnnl_engine_create(&engine, dnnl_cpu, 0));
    TRY(dnnl_stream_create(&stream, engine, dnnl_stream_default_flags));
    TRY(dnnl_memory_desc_init_by_tag(&a, 2, a_dims, type, dnnl_ab));
    TRY(dnnl_memory_desc_init_by_tag(&b, 2, b_dims, type, dnnl_format_tag_any));
    TRY(dnnl_memory_desc_init_by_tag(&c, 2, c_dims, dnnl_f32, dnnl_ab));
    TRY(dnnl_matmul_desc_init(&matmul, &a, &b, NULL, &c));
    TRY(dnnl_primitive_desc_create(&desc, &matmul, NULL, engine, NULL));
    TRY(dnnl_primitive_create(&primitive, desc));
    TRY(new_memory(&memory[0], &a, engine));
    TRY(new_memory(&memory[1], dnnl_primitive_desc_query_md(desc, dnnl_query_weights_md, 0),
                   engine));
    TRY(new_memory(&memory[2], &c, engine));
    const dnnl_exec_arg_t args[] = {
        {DNNL_ARG_SRC, memory[0]}, {DNNL_ARG_WEIGHTS, memory[1]}, {DNNL_ARG_DST, memory[2]}};
    double best = 1e9;
    for (int i = 0; i < 9; i++) {
        double start = wall_s();
        TRY(dnnl_primitive_execute(primitive, stream, 3, args));
        TRY(dnnl_stream_wait(stream));
        double seconds = wall_s() - start;
        if (seconds < best) best = seconds;
    }
    for (int i = 0; i < 3; i++) dnnl_memory_destroy(memory[i]);
    dnnl_primitive_destroy(primitive);
    dnnl_primitive_desc_destroy(desc);
    dnnl_stream_destroy(stream);
    dnnl_engine_destroy(engine);
    return best;
}

void bench_onednn(int64_t m, int64_t n, int64_t k)
{
    for (int is_bf16 = 0; is_bf16 < 2; is_bf16++) {
        double seconds = run_matmul(is_bf16 ? dnnl_bf16 : dnnl_f32, m, n, k);
        printf("onednn %-8s %s m %d n %d k %d %8.0f GFLOP/s\n", "", is_bf16 ? "bf16" : "f32 ",
               (int)m, (int)n, (int)k, 2.0 * (double)(m * n * k) / seconds * 1e-9);
    }
}
#else
void bench_onednn(int64_t m, int64_t n, int64_t k)
{
    printf("onednn not built in (m %d n %d k %d)\n", (int)m, (int)n, (int)k);
}
#endif
