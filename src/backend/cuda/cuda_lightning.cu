/* msa_lightning and msa_lightning_backward: mixes, and the scan of their states; see lightning.h.
 */
#include "backend/cuda/lightning.cuh"

enum { THREADS = 256, QUADS = 4 };

/* ---- states ------------------------------------------------------------------------------------
 */

static __device__ float4 read_quad(const lightning_state &from, int64_t i, int dim)
{
    if (!from.data) return make_float4(0, 0, 0, 0);
    const float *x = from.data + i / dim * from.stride + i % dim;
    return make_float4(x[0], x[1], x[2], x[3]);
}

/* Sums of segments become the states before them: a thread has four elements of a head's state. */
static __global__ void __launch_bounds__(THREADS)
    scan_kernel(const __grid_constant__ lightning_mix mix)
{
    int seq = blockIdx.x, head = blockIdx.y, n_segments = segments_of(mix, seq);
    int64_t i = ((int64_t)blockIdx.z * THREADS + threadIdx.x) * QUADS;
    if (n_segments == 1 || i >= (int64_t)mix.dim * mix.dim) return;
    float decay = expf(-mix.slopes[head] * SEGMENT);
    float4 state = read_quad(slot_at(mix, mix.state_in, seq, head), i, mix.dim);
    for (int number = 1; number < n_segments; number++) {
        float4 *at = (float4 *)(boundary_at(mix, seq, number, head) + i), sum = *at;
        state = make_float4(fmaf(decay, state.x, sum.x), fmaf(decay, state.y, sum.y),
                            fmaf(decay, state.z, sum.z), fmaf(decay, state.w, sum.w));
        *at = state;
    }
}

/* The last states of long sequences into their slots. */
static __global__ void __launch_bounds__(THREADS)
    hand_on_kernel(const __grid_constant__ lightning_mix mix)
{
    int seq = blockIdx.x, head = blockIdx.y, n_segments = segments_of(mix, seq), dim = mix.dim;
    int64_t i = (int64_t)blockIdx.z * THREADS + threadIdx.x;
    lightning_state to = slot_at(mix, mix.state_out, seq, head);
    if (n_segments == 1 || !to.data || i >= (int64_t)dim * dim) return;
    to.data[i / dim * to.stride + i % dim] = boundary_at(mix, seq, n_segments - 1, head)[i];
}

/* ---- a mix ------------------------------------------------------------------------------------
 */

static size_t boundary_bytes(const msa_tensor *q)
{
    int64_t of_head = q->shape[2] * q->shape[2];
    return (size_t)((q->shape[0] / SEGMENT + 1) * q->shape[1] * of_head) * sizeof(float);
}

static dim3 state_grid(const lightning_mix *mix, int of_thread)
{
    int64_t n = (int64_t)mix->dim * mix->dim / of_thread;
    return dim3((unsigned)mix->n_seqs, (unsigned)mix->n_heads,
                (unsigned)((n + THREADS - 1) / THREADS));
}

static msa_status run_mix(msa_context *ctx, const lightning_mix *mix, int fast)
{
    msa_status (*step)(msa_context *, const lightning_mix *, int) =
        fast ? lightning_chunks : lightning_generic;
    if (mix->n_seqs == 0) return MSA_OK;
    if (mix->n_tokens > SEGMENT) {
        MSA_TRY(step(ctx, mix, 0));
        scan_kernel<<<state_grid(mix, QUADS), THREADS, 0, cuda_stream(ctx)>>>(*mix);
        MSA_TRY(cuda_launched("lightning"));
    }
    MSA_TRY(step(ctx, mix, 1));
    if (mix->n_tokens <= SEGMENT || !mix->state_out) return MSA_OK;
    hand_on_kernel<<<state_grid(mix, 1), THREADS, 0, cuda_stream(ctx)>>>(*mix);
    return cuda_launched("lightning");
}

static int is_fast(const msa_tensor *const *tensors, int n)
{
    for (int i = 0; i < n; i++) {
        if (tensors[i]->dtype != MSA_DTYPE_BF16 || !cuda_is_wide(tensors[i])) return 0;
    }
    return tensors[0]->shape[2] == 64 || tensors[0]->shape[2] == 128;
}

static lightning_mix mix_of(const msa_tensor *q, int32_t n_seqs, const int32_t *cu_seqlens,
                            const float *slopes, void *workspace)
{
    lightning_mix mix = {};
    mix.n_heads = (int32_t)q->shape[1];
    mix.dim = (int32_t)q->shape[2];
    mix.n_seqs = n_seqs;
    mix.n_tokens = q->shape[0];
    mix.cu_seqlens = cu_seqlens;
    mix.slopes = slopes;
    mix.boundaries = (float *)workspace;
    return mix;
}

/* ---- forward ----------------------------------------------------------------------------------
 */

size_t cuda_lightning_workspace(const msa_context *ctx, const msa_lightning_args *args)
{
    (void)ctx;
    return boundary_bytes(&args->q);
}

msa_status cuda_lightning(msa_context *ctx, const msa_lightning_args *args, void *workspace)
{
    MSA_CUDA_TRY("lightning", cudaSetDevice(cuda_state(ctx)->device));
    const msa_tensor *inputs[] = {&args->q, &args->k, &args->v};
    lightning_mix mix = mix_of(&args->q, args->n_seqs, args->cu_seqlens_q, args->slopes, workspace);
    mix.x = {cuda_view_of(&args->q), 1};
    mix.y = {cuda_view_of(&args->k), 1};
    mix.z = {cuda_view_of(&args->v), 1};
    mix.out = cuda_view_of(&args->out);
    if (args->states.n_dims) {
        mix.states = (float *)args->states.data;
        for (int d = 0; d < 3; d++) mix.state_stride[d] = args->states.stride[d];
        mix.state_in = args->state_in;
        mix.state_out = args->state_out;
    }
    return run_mix(ctx, &mix, is_fast(inputs, 3));
}

/* ---- backward ---------------------------------------------------------------------------------
 */

size_t cuda_lightning_backward_workspace(const msa_context *ctx,
                                         const msa_lightning_backward_args *args)
{
    (void)ctx;
    return boundary_bytes(&args->q);
}

msa_status cuda_lightning_backward(msa_context *ctx, const msa_lightning_backward_args *args,
                                   void *workspace)
{
    MSA_CUDA_TRY("lightning_backward", cudaSetDevice(cuda_state(ctx)->device));
    const msa_tensor *inputs[] = {&args->q, &args->k, &args->v, &args->d_out};
    int fast = is_fast(inputs, 4);
    lightning_operand q = {cuda_view_of(&args->q), 1}, k = {cuda_view_of(&args->k), 1},
                      v = {cuda_view_of(&args->v), 1}, d = {cuda_view_of(&args->d_out), 0};
    lightning_mix mix = mix_of(&args->q, args->n_seqs, args->cu_seqlens_q, args->slopes, workspace);
    mix.x = d, mix.y = v, mix.z = k;
    mix.slope_at = q.view;
    mix.out = cuda_view_of(&args->dq);
    MSA_TRY(run_mix(ctx, &mix, fast));
    mix.reverse = 1;
    mix.x = v, mix.y = d, mix.z = q;
    mix.slope_at = k.view;
    mix.out = cuda_view_of(&args->dk);
    MSA_TRY(run_mix(ctx, &mix, fast));
    mix.x = k, mix.y = q, mix.z = d;
    mix.slope_at = v.view;
    mix.out = cuda_view_of(&args->dv);
    return run_mix(ctx, &mix, fast);
}
