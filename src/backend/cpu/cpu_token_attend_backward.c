/* Gradient of attention over listed tokens: that of dense attention with the other keys hidden, so
 * that products run over whole blocks and no sum has two owners. */
#include "backend/cpu/cpu_attend_gradient.h"
#include "backend/cpu/cpu_backend.h"

#define TILE_KEYS 128

static msa__attend_gradient describe(const msa_token_attend_backward_args *args)
{
    return (msa__attend_gradient){.selection = {.kv = &args->kv,
                                                .cu_seqlens_q = args->cu_seqlens_q,
                                                .n_tokens = args->q.shape[0],
                                                .block_size = TILE_KEYS,
                                                .tokens = &args->tokens},
                                  .q = &args->q,
                                  .out = &args->out,
                                  .lse = &args->lse,
                                  .d_out = &args->d_out,
                                  .dq = &args->dq,
                                  .dk = &args->dk,
                                  .dv = &args->dv,
                                  .scale = args->scale};
}

size_t msa__cpu_token_attend_backward_workspace(const msa_context *ctx,
                                                const msa_token_attend_backward_args *args)
{
    msa__attend_gradient gradient = describe(args);
    return msa__attend_gradient_workspace(ctx, &gradient);
}

msa_status msa__cpu_token_attend_backward(msa_context *ctx,
                                          const msa_token_attend_backward_args *args,
                                          void *workspace)
{
    msa__attend_gradient gradient = describe(args);
    const float *shift, *delta;
    msa__attend_gradient_run(ctx, &gradient, workspace, &shift, &delta);
    return MSA_OK;
}
