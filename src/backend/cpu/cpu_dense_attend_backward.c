/* Gradient of dense attention, windows and sinks included. */
#include "backend/cpu/cpu_attend_gradient.h"
#include "backend/cpu/cpu_backend.h"

#include <math.h>

#define TILE_KEYS 128

static msa__attend_gradient describe(const msa_dense_attend_backward_args *args)
{
    return (msa__attend_gradient){.selection = {.kv = &args->kv,
                                                .cu_seqlens_q = args->cu_seqlens_q,
                                                .n_tokens = args->q.shape[0],
                                                .block_size = TILE_KEYS,
                                                .window = args->window,
                                                .n_sink_tokens = args->n_sink_tokens},
                                  .q = &args->q,
                                  .out = &args->out,
                                  .lse = &args->lse,
                                  .d_out = &args->d_out,
                                  .dq = &args->dq,
                                  .dk = &args->dk,
                                  .dv = &args->dv,
                                  .scale = args->scale};
}

size_t msa__cpu_dense_attend_backward_workspace(const msa_context *ctx,
                                                const msa_dense_attend_backward_args *args)
{
    msa__attend_gradient gradient = describe(args);
    return msa__attend_gradient_workspace(ctx, &gradient);
}

/* (M18): dx = sum over the tokens of exp(x - L) (0 - delta). */
static void add_sink_gradients(const msa_dense_attend_backward_args *args, const float *shift,
                               const float *delta)
{
    int64_t n_tokens = args->q.shape[0], n_heads = args->q.shape[1];
    for (int64_t h = 0; h < n_heads; h++) {
        float logit = args->sink_logit[h] * MSA__LOG2_E;
        double sum = 0;
        for (int64_t i = 0; i < n_tokens; i++) {
            sum -= (double)(exp2f(logit - shift[i * n_heads + h]) * delta[i * n_heads + h]);
        }
        ((float *)args->d_sink_logit.data)[h] += (float)sum;
    }
}

msa_status msa__cpu_dense_attend_backward(msa_context *ctx,
                                          const msa_dense_attend_backward_args *args,
                                          void *workspace)
{
    msa__attend_gradient gradient = describe(args);
    const float *shift, *delta;
    msa__attend_gradient_run(ctx, &gradient, workspace, &shift, &delta);
    if (args->d_sink_logit.data) add_sink_gradients(args, shift, delta);
    return MSA_OK;
}
