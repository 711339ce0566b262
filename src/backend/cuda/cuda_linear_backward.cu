/* msa_linear_backward: dx = dy W and dW += dy^T x. Where a product runs in bf16, dy is rounded to
 * bf16 once, into the workspace. */
#include "backend/cuda/cublaslt.h"
#include "backend/cuda/elements.cuh"

extern "C" {
#include "base/arena.h"
}

enum { THREADS = 256 };

/* Rows of any dtype as bf16, row behind row; a thread takes W neighbours. */
template <int W>
static __global__ void __launch_bounds__(THREADS)
    to_bf16_kernel(cuda_view view, int64_t n_rows, int64_t width, __nv_bfloat16 *out)
{
    int64_t i = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * W;
    if (i >= n_rows * width) return;
    float x[W];
    load_elements<W>(view.data, view.dtype, i / width * view.stride[0] + i % width, x);
    store_elements<W>(out, CUDA_BF16, i, x);
}

static msa_status round_rows(msa_context *ctx, const msa_tensor *t, __nv_bfloat16 *out)
{
    int64_t n_rows = t->shape[0], width = t->shape[1], per_thread = cuda_is_wide(t) ? 8 : 1;
    unsigned grid = (unsigned)((n_rows * width / per_thread + THREADS - 1) / THREADS);
    auto kernel = per_thread == 8 ? to_bf16_kernel<8> : to_bf16_kernel<1>;
    kernel<<<grid, THREADS, 0, cuda_stream(ctx)>>>(cuda_view_of(t), n_rows, width, out);
    return cuda_launched("linear_backward");
}

typedef struct linear_layout {
    __nv_bfloat16 *rounded;
    float *parts;
    void *cublaslt_workspace;
} linear_layout;

static int needs_rounding(const msa_linear_backward_args *args)
{
    return args->d_out.dtype != MSA_DTYPE_BF16 &&
           ((args->dx.n_dims && args->weight.w.dtype == MSA_DTYPE_BF16) ||
            (args->d_weight.n_dims && args->x.dtype == MSA_DTYPE_BF16));
}

static size_t layout_of(const msa_context *ctx, const msa_linear_backward_args *args,
                        void *workspace, linear_layout *layout)
{
    msa__arena arena = {(unsigned char *)workspace, 0, 0};
    int64_t n = args->d_out.shape[0], n_out = args->d_out.shape[1];
    layout->rounded = (__nv_bfloat16 *)msa__arena_take(&arena, needs_rounding(args) ? n * n_out : 0,
                                                       sizeof(__nv_bfloat16));
    size_t parts = args->d_weight.n_dims
                       ? gradient_product_bytes(ctx, n_out, args->d_weight.shape[1], n, 1)
                       : 0;
    layout->parts =
        (float *)msa__arena_take(&arena, (int64_t)(parts / sizeof(float)), sizeof(float));
    if (parts == 0) layout->parts = NULL;
    size_t bytes = cublaslt_bytes(ctx, n, n_out,
                                  args->dx.n_dims ? args->dx.shape[1] : args->d_weight.shape[1]);
    layout->cublaslt_workspace = msa__arena_take(&arena, (int64_t)bytes, 1);
    return arena.used;
}

size_t cuda_linear_backward_workspace(const msa_context *ctx, const msa_linear_backward_args *args)
{
    linear_layout layout;
    return layout_of(ctx, args, NULL, &layout);
}

msa_status cuda_linear_backward(msa_context *ctx, const msa_linear_backward_args *args,
                                void *workspace)
{
    MSA_CUDA_TRY("linear_backward", cudaSetDevice(cuda_state(ctx)->device));
    const msa_tensor *d_out = &args->d_out;
    int64_t n = d_out->shape[0], n_out = d_out->shape[1];
    if (n == 0) return MSA_OK;
    linear_layout layout;
    layout_of(ctx, args, workspace, &layout);
    product_operand exact = {matrix_of(d_out), NULL, d_out->dtype, 0};
    product_operand rounded = exact;
    if (needs_rounding(args)) {
        rounded = product_operand{{layout.rounded, n_out}, NULL, MSA_DTYPE_BF16, 0};
        MSA_TRY(round_rows(ctx, d_out, layout.rounded));
    }
    if (args->dx.data) {
        const msa_tensor *w = &args->weight.w;
        gradient_product p = {};
        p.a = w->dtype == MSA_DTYPE_BF16 ? rounded : exact;
        p.b = product_operand{matrix_of(w), NULL, w->dtype, 1};
        p.c = matrix_of(&args->dx);
        p.c_dtype = args->dx.dtype;
        p.accumulate = args->accumulate;
        p.m = n;
        p.n = w->shape[1];
        p.k = n_out;
        p.workspace = layout.cublaslt_workspace;
        MSA_TRY(gradient_multiply(ctx, "linear_backward", &p));
    }
    if (args->d_weight.data) {
        const msa_tensor *x = &args->x;
        gradient_product p = {};
        p.a = x->dtype == MSA_DTYPE_BF16 ? rounded : exact;
        p.a.across = 1;
        p.b = product_operand{matrix_of(x), NULL, x->dtype, 1};
        p.c = matrix_of(&args->d_weight);
        p.c_dtype = MSA_DTYPE_F32;
        p.accumulate = 1;
        p.m = n_out;
        p.n = x->shape[1];
        p.k = n;
        p.parts = layout.parts;
        p.workspace = layout.cublaslt_workspace;
        MSA_TRY(gradient_multiply(ctx, "linear_backward", &p));
    }
    return MSA_OK;
}
