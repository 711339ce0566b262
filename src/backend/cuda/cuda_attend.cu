/* attend: which path runs. */
#include "backend/cuda/attend.h"

typedef enum attend_path { ATTEND_GENERIC, ATTEND_PREFILL } attend_path;

static attend_path choose_path(const msa_attend_args *args)
{
    return cuda_attend_prefill_supports(args) ? ATTEND_PREFILL : ATTEND_GENERIC;
}

size_t cuda_attend_workspace(const msa_context *ctx, const msa_attend_args *args)
{
    return choose_path(args) == ATTEND_PREFILL ? cuda_attend_prefill_workspace(args) : 0;
}

msa_status cuda_attend(msa_context *ctx, const msa_attend_args *args, void *workspace)
{
    if (args->q.shape[0] == 0) return MSA_OK;
    MSA_CUDA_TRY("attend", cudaSetDevice(cuda_state(ctx)->device));
    if (choose_path(args) == ATTEND_PREFILL) return cuda_attend_prefill(ctx, args, workspace);
    return cuda_attend_generic(ctx, args);
}
