/* oneDNN's bf16 matrix product, found at run time: the program itself does not depend on it. All
 * calls of its C API (version 2) are in this file. */
#include "bench_ceiling.h"

#if defined(MSA_HAVE_ONEDNN)
#    include "progress.h"

#    include <dlfcn.h>
#    include <oneapi/dnnl/dnnl.h>
#    include <string.h>

/* X(name): the functions in use, each a member of the table below. */
#    define ONEDNN_FUNCTIONS(X)                                                                    \
        X(dnnl_engine_create)                                                                      \
        X(dnnl_engine_destroy)                                                                     \
        X(dnnl_stream_create)                                                                      \
        X(dnnl_stream_destroy)                                                                     \
        X(dnnl_stream_wait)                                                                        \
        X(dnnl_memory_desc_init_by_tag)                                                            \
        X(dnnl_memory_desc_get_size)                                                               \
        X(dnnl_memory_create)                                                                      \
        X(dnnl_memory_destroy)                                                                     \
        X(dnnl_memory_get_data_handle)                                                             \
        X(dnnl_matmul_desc_init)                                                                   \
        X(dnnl_primitive_desc_create)                                                              \
        X(dnnl_primitive_desc_destroy)                                                             \
        X(dnnl_primitive_desc_query_md)                                                            \
        X(dnnl_primitive_create)                                                                   \
        X(dnnl_primitive_destroy)                                                                  \
        X(dnnl_primitive_execute)

typedef struct {
#    define MEMBER(name) __typeof__(&name) name;
    ONEDNN_FUNCTIONS(MEMBER)
#    undef MEMBER
} functions;

static int find_functions(void *library, functions *f)
{
    void *address;
#    define FIND(name)                                                                             \
        address = dlsym(library, #name);                                                           \
        if (!address) return 0;                                                                    \
        memcpy(&f->name, &address, sizeof(address));
    ONEDNN_FUNCTIONS(FIND)
#    undef FIND
    return 1;
}

#    define RUNS 9

/* Everything one product needs; zero where not made yet. */
typedef struct {
    dnnl_engine_t engine;
    dnnl_stream_t stream;
    dnnl_primitive_desc_t desc;
    dnnl_primitive_t primitive;
    dnnl_memory_t memory[3];
} product;

/* Memory of small finite values in the layout the primitive asks for. */
static int new_memory(const functions *f, product *p, int i, const dnnl_memory_desc_t *desc)
{
    void *data;
    if (f->dnnl_memory_create(&p->memory[i], desc, p->engine, DNNL_MEMORY_ALLOCATE) !=
            dnnl_success ||
        f->dnnl_memory_get_data_handle(p->memory[i], &data) != dnnl_success) {
        return 0;
    }
    memset(data, 0x3c, f->dnnl_memory_desc_get_size(desc));
    return 1;
}

static int make_product(const functions *f, product *p, int64_t m, int64_t n, int64_t k)
{
    const dnnl_dims_t a_dims = {m, k}, b_dims = {k, n}, c_dims = {m, n};
    dnnl_memory_desc_t a, b, c;
    dnnl_matmul_desc_t matmul;
#    define TRY(call)                                                                              \
        if ((call) != dnnl_success) return 0
    TRY(f->dnnl_engine_create(&p->engine, dnnl_cpu, 0));
    TRY(f->dnnl_stream_create(&p->stream, p->engine, dnnl_stream_default_flags));
    TRY(f->dnnl_memory_desc_init_by_tag(&a, 2, a_dims, dnnl_bf16, dnnl_ab));
    TRY(f->dnnl_memory_desc_init_by_tag(&b, 2, b_dims, dnnl_bf16, dnnl_format_tag_any));
    TRY(f->dnnl_memory_desc_init_by_tag(&c, 2, c_dims, dnnl_f32, dnnl_ab));
    TRY(f->dnnl_matmul_desc_init(&matmul, &a, &b, NULL, &c));
    TRY(f->dnnl_primitive_desc_create(&p->desc, &matmul, NULL, p->engine, NULL));
    TRY(f->dnnl_primitive_create(&p->primitive, p->desc));
#    undef TRY
    return new_memory(f, p, 0, &a) &&
           new_memory(f, p, 1,
                      f->dnnl_primitive_desc_query_md(p->desc, dnnl_query_weights_md, 0)) &&
           new_memory(f, p, 2, &c);
}

static void destroy_product(const functions *f, product *p)
{
    for (int i = 0; i < 3; i++) {
        if (p->memory[i]) f->dnnl_memory_destroy(p->memory[i]);
    }
    if (p->primitive) f->dnnl_primitive_destroy(p->primitive);
    if (p->desc) f->dnnl_primitive_desc_destroy(p->desc);
    if (p->stream) f->dnnl_stream_destroy(p->stream);
    if (p->engine) f->dnnl_engine_destroy(p->engine);
}

static double product_rate(const functions *f, int64_t m, int64_t n, int64_t k)
{
    product p;
    double best = 0;
    memset(&p, 0, sizeof(p));
    if (make_product(f, &p, m, n, k)) {
        const dnnl_exec_arg_t args[] = {{DNNL_ARG_SRC, p.memory[0]},
                                        {DNNL_ARG_WEIGHTS, p.memory[1]},
                                        {DNNL_ARG_DST, p.memory[2]}};
        for (int run = 0; run < RUNS; run++) {
            double start = cli_seconds();
            if (f->dnnl_primitive_execute(p.primitive, p.stream, 3, args) != dnnl_success) break;
            if (f->dnnl_stream_wait(p.stream) != dnnl_success) break;
            double rate = 2.0 * (double)(m * n * k) / (cli_seconds() - start) * 1e-9;
            if (rate > best) best = rate;
        }
    }
    destroy_product(f, &p);
    return best;
}

double bench_onednn_rate(int32_t n_threads)
{
    functions f;
    double best = 0;
    void *library = dlopen("libdnnl.so.2", RTLD_NOW | RTLD_LOCAL);
    if (!library) return 0;
    if (find_functions(library, &f)) {
        /* Its threads are OpenMP's: as many as ours. */
        void *address = dlsym(library, "omp_set_num_threads");
        void (*set_threads)(int);
        memcpy(&set_threads, &address, sizeof(address));
        if (address) set_threads(n_threads);
        const int64_t shapes[][3] = {
            {512, 4096, 4096}, {1024, 4096, 4096}, {4096, 4096, 4096}, {2048, 2048, 2048}};
        for (size_t i = 0; i < sizeof(shapes) / sizeof(shapes[0]); i++) {
            double rate = product_rate(&f, shapes[i][0], shapes[i][1], shapes[i][2]);
            if (rate > best) best = rate;
        }
    }
    return best; /* its threads live on, so it stays loaded */
}
#else
double bench_onednn_rate(int32_t n_threads)
{
    (void)n_threads;
    return 0;
}
#endif
