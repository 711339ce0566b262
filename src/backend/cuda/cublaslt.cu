/* See cublaslt.h. Host code only: the library's matrices are column-major, so a row-major c = a b^T
 * is asked for as c^T = b a^T, with every operand transposed by name where its k is contiguous. */
#include "backend/cuda/cublaslt.h"

#include <dlfcn.h>
#include <string.h>

/* CUBLAS_VER_MAJOR is the header's: the interface of another version may differ. */
#define TEXT_OF(x)    #x
#define VERSION_OF(x) TEXT_OF(x)
#define LIBRARY_FILE  "libcublasLt.so." VERSION_OF(CUBLAS_VER_MAJOR)

/* `call` is a call of the library, made by operator `op`. */
#define LT_TRY(op, call)                                                                           \
    do {                                                                                           \
        int lt_try_status_ = (int)(call);                                                          \
        if (lt_try_status_ != CUBLAS_STATUS_SUCCESS) {                                             \
            return MSA_FAIL(MSA_EDEVICE, "%s: cuBLASLt reports status %d", op, lt_try_status_);    \
        }                                                                                          \
    } while (0)

#if __has_include(<cublasLt.h>)
#    include <cublasLt.h>

/* From this many multiplications on it was measured to be faster. */
static const double LEAST_PRODUCTS = (double)((int64_t)1 << 30);

enum { MAX_CHOICES = 64 };

/* Everything the choice of an algorithm may depend on. */
typedef struct product_shape {
    int64_t m, n, k, a_step, b_step, c_step;
    int32_t a_across, b_across, c_dtype, accumulate;
} product_shape;

typedef struct product_choice {
    product_shape shape;
    cublasLtMatmulAlgo_t algorithm;
    int is_usable;
} product_choice;

/* How the library is told of one product. */
typedef struct product_terms {
    cublasLtMatmulDescOpaque_t product;
    cublasLtMatrixLayoutOpaque_t a, b, c; /* ours */
} product_terms;

struct msa__cublaslt {
    cublasLtHandle_t handle;
    decltype(&cublasLtCreate) create;
    decltype(&cublasLtDestroy) destroy;
    decltype(&cublasLtMatmul) multiply;
    decltype(&cublasLtMatmulAlgoGetHeuristic) choose;
    decltype(&cublasLtMatmulDescInit_internal) init_product;
    decltype(&cublasLtMatmulDescSetAttribute) set_product;
    decltype(&cublasLtMatrixLayoutInit_internal) init_matrix;
    decltype(&cublasLtMatmulPreferenceInit_internal) init_preference;
    decltype(&cublasLtMatmulPreferenceSetAttribute) set_preference;
    product_choice choices[MAX_CHOICES];
    int n_choices; /* made so far; the oldest makes room */
};

/* ---- opening ----------------------------------------------------------------------------------
 */

template <typename F> static int find(void *library, const char *name, F *call)
{
    *call = (F)dlsym(library, name);
    return *call != NULL;
}

static int find_calls(void *library, msa__cublaslt *lt)
{
    return find(library, "cublasLtCreate", &lt->create) &&
           find(library, "cublasLtDestroy", &lt->destroy) &&
           find(library, "cublasLtMatmul", &lt->multiply) &&
           find(library, "cublasLtMatmulAlgoGetHeuristic", &lt->choose) &&
           find(library, "cublasLtMatmulDescInit_internal", &lt->init_product) &&
           find(library, "cublasLtMatmulDescSetAttribute", &lt->set_product) &&
           find(library, "cublasLtMatrixLayoutInit_internal", &lt->init_matrix) &&
           find(library, "cublasLtMatmulPreferenceInit_internal", &lt->init_preference) &&
           find(library, "cublasLtMatmulPreferenceSetAttribute", &lt->set_preference);
}

/* The library stays loaded for the life of the process, like the kernels it brings. */
msa_status cublaslt_open(msa_context *ctx, const char *path)
{
    msa__cuda_state *state = cuda_state(ctx);
    const char *file = path ? path : LIBRARY_FILE;
    state->asked_cublaslt = 1;
    void *library = dlopen(file, RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        return MSA_FAIL(MSA_EUNSUPPORTED,
                        "environment: MSA_CUBLASLT = %.200s, must be a library that loads: %.200s",
                        file, dlerror());
    }
    msa__cublaslt *lt = (msa__cublaslt *)ctx->allocator.alloc(ctx->allocator.user, sizeof(*lt), 64);
    if (!lt) return MSA_FAIL(MSA_ENOMEM, "context: no memory for cuBLASLt");
    memset(lt, 0, sizeof(*lt));
    if (!find_calls(library, lt) || lt->create(&lt->handle) != CUBLAS_STATUS_SUCCESS) {
        ctx->allocator.free(ctx->allocator.user, lt, sizeof(*lt));
        return MSA_FAIL(MSA_EUNSUPPORTED,
                        "environment: MSA_CUBLASLT = %.200s, must be " LIBRARY_FILE
                        " and work on this device",
                        file);
    }
    state->cublaslt = lt;
    return MSA_OK;
}

void cublaslt_close(msa_context *ctx)
{
    msa__cublaslt *lt = cuda_state(ctx)->cublaslt;
    if (!lt) return;
    (void)lt->destroy(lt->handle);
    ctx->allocator.free(ctx->allocator.user, lt, sizeof(*lt));
    cuda_state(ctx)->cublaslt = NULL;
}

size_t cublaslt_bytes(const msa_context *ctx, int64_t m, int64_t n, int64_t k)
{
    msa__cuda_state *state = cuda_state(ctx);
    if ((double)m * (double)n * (double)k < LEAST_PRODUCTS) return 0;
    if (!state->asked_cublaslt) (void)cublaslt_open((msa_context *)ctx, NULL);
    return state->cublaslt ? CUBLASLT_WORKSPACE + CUBLASLT_ALIGNMENT : 0;
}

/* ---- one product ------------------------------------------------------------------------------
 */

/* Our a (m) or b (n): stored with k contiguous it is a column-major matrix of k rows. */
static msa_status describe_operand(const msa__cublaslt *lt, const char *op,
                                   const product_operand &operand, int64_t extent, int64_t k,
                                   cublasLtMatrixLayoutOpaque_t *out)
{
    int64_t rows = operand.across ? extent : k, columns = operand.across ? k : extent;
    LT_TRY(op, lt->init_matrix(out, sizeof(*out), CUDA_R_16BF, (uint64_t)rows, (uint64_t)columns,
                               operand.of.step));
    return MSA_OK;
}

/* The library's first operand is our b, its second our a, its result c^T, n x m. */
static msa_status describe(const msa__cublaslt *lt, const char *op, const gradient_product *p,
                           product_terms *terms)
{
    int32_t first = p->b.across ? CUBLAS_OP_N : CUBLAS_OP_T;
    int32_t second = p->a.across ? CUBLAS_OP_T : CUBLAS_OP_N;
    cudaDataType_t c_type = p->c_dtype == MSA_DTYPE_F32 ? CUDA_R_32F : CUDA_R_16BF;
    cublasLtMatmulDescOpaque_t *product = &terms->product;
    LT_TRY(op, lt->init_product(product, sizeof(*product), CUBLAS_COMPUTE_32F, CUDA_R_32F));
    LT_TRY(op, lt->set_product(product, CUBLASLT_MATMUL_DESC_TRANSA, &first, sizeof(first)));
    LT_TRY(op, lt->set_product(product, CUBLASLT_MATMUL_DESC_TRANSB, &second, sizeof(second)));
    MSA_TRY(describe_operand(lt, op, p->a, p->m, p->k, &terms->a));
    MSA_TRY(describe_operand(lt, op, p->b, p->n, p->k, &terms->b));
    LT_TRY(op, lt->init_matrix(&terms->c, sizeof(terms->c), c_type, (uint64_t)p->n, (uint64_t)p->m,
                               p->c.step));
    return MSA_OK;
}

/* Any operand that own kernels copy 16 bytes at a time will do; parts of a split sum are added in
 * order, in the workspace. */
static msa_status set_preference(const msa__cublaslt *lt, const char *op,
                                 cublasLtMatmulPreferenceOpaque_t *preference)
{
    static const cublasLtMatmulPreferenceAttributes_t alignments[] = {
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES};
    uint32_t alignment = 16, reductions = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
    uint64_t bytes = CUBLASLT_WORKSPACE;
    LT_TRY(op, lt->init_preference(preference, sizeof(*preference)));
    for (int i = 0; i < 4; i++) {
        LT_TRY(op, lt->set_preference(preference, alignments[i], &alignment, sizeof(alignment)));
    }
    LT_TRY(op, lt->set_preference(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
                                  &reductions, sizeof(reductions)));
    LT_TRY(op, lt->set_preference(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &bytes,
                                  sizeof(bytes)));
    return MSA_OK;
}

/* The algorithm of a shape: asked for once, on the host. */
static msa_status choose(msa__cublaslt *lt, const char *op, const gradient_product *p,
                         product_terms *terms, product_choice **out)
{
    product_shape shape;
    memset(&shape, 0, sizeof(shape));
    shape = product_shape{p->m,      p->n,        p->k,        p->a.of.step,        p->b.of.step,
                          p->c.step, p->a.across, p->b.across, (int32_t)p->c_dtype, p->accumulate};
    for (int i = 0; i < lt->n_choices && i < MAX_CHOICES; i++) {
        *out = &lt->choices[i];
        if (memcmp(&lt->choices[i].shape, &shape, sizeof(shape)) == 0) return MSA_OK;
    }
    cublasLtMatmulPreferenceOpaque_t preference;
    MSA_TRY(set_preference(lt, op, &preference));
    cublasLtMatmulHeuristicResult_t result;
    memset(&result, 0, sizeof(result));
    int n_found = 0;
    cublasStatus_t status = lt->choose(lt->handle, &terms->product, &terms->b, &terms->a, &terms->c,
                                       &terms->c, &preference, 1, &result, &n_found);
    product_choice *choice = &lt->choices[lt->n_choices++ % MAX_CHOICES];
    choice->shape = shape;
    choice->algorithm = result.algo;
    choice->is_usable = status == CUBLAS_STATUS_SUCCESS && n_found > 0 &&
                        result.state == CUBLAS_STATUS_SUCCESS &&
                        result.workspaceSize <= CUBLASLT_WORKSPACE;
    *out = choice;
    return MSA_OK;
}

static int is_aligned(const product_matrix *matrix, size_t element)
{
    return ((uintptr_t)matrix->data | (uintptr_t)matrix->step * element) % 16 == 0;
}

msa_status cublaslt_multiply(msa_context *ctx, const char *op, const gradient_product *p, int *done)
{
    msa__cublaslt *lt = cuda_state(ctx)->cublaslt;
    *done = 0;
    if (!is_aligned(&p->a.of, 2) || !is_aligned(&p->b.of, 2) ||
        !is_aligned(&p->c, msa_dtype_bytes(p->c_dtype)) || p->c_dtype == MSA_DTYPE_F16) {
        return MSA_OK;
    }
    product_terms terms;
    product_choice *choice;
    MSA_TRY(describe(lt, op, p, &terms));
    MSA_TRY(choose(lt, op, p, &terms, &choice));
    if (!choice->is_usable) return MSA_OK;
    float one = 1, old = p->accumulate ? 1 : 0;
    uintptr_t workspace = (uintptr_t)p->workspace + CUBLASLT_ALIGNMENT - 1;
    workspace -= workspace % CUBLASLT_ALIGNMENT;
    cublasStatus_t status =
        lt->multiply(lt->handle, &terms.product, &one, p->b.of.data, &terms.b, p->a.of.data,
                     &terms.a, &old, p->c.data, &terms.c, p->c.data, &terms.c, &choice->algorithm,
                     (void *)workspace, CUBLASLT_WORKSPACE, cuda_stream(ctx));
    /* It refuses some short rows (16, 24 or 48 elements) that it named an algorithm for. */
    choice->is_usable =
        status != CUBLAS_STATUS_INVALID_VALUE && status != CUBLAS_STATUS_NOT_SUPPORTED;
    if (!choice->is_usable) return MSA_OK;
    LT_TRY(op, status);
    *done = 1;
    return MSA_OK;
}

#else /* a toolkit without the library's header */

msa_status cublaslt_open(msa_context *ctx, const char *path)
{
    return MSA_FAIL(MSA_EUNSUPPORTED,
                    "environment: MSA_CUBLASLT = %.200s, but msa was built without cublasLt.h",
                    path);
}

void cublaslt_close(msa_context *ctx) {}

size_t cublaslt_bytes(const msa_context *ctx, int64_t m, int64_t n, int64_t k)
{
    return 0;
}

msa_status cublaslt_multiply(msa_context *ctx, const char *op, const gradient_product *p, int *done)
{
    *done = 0;
    return MSA_OK;
}
#endif
