/* attend: which path runs. */
#include "backend/cuda/attend.h"

typedef enum attend_path { ATTEND_GENERIC, ATTEND_PREFILL, ATTEND_DECODE } attend_path;

static attend_path choose_path(const msa_attend_args *args)
{
    if (cuda_attend_decode_supports(args)) return ATTEND_DECODE;
    return cuda_attend_prefill_supports(args) ? ATTEND_PREFILL : ATTEND_GENERIC;
}

/* Of the path that needs most: a plan serves smaller batches too, whatever path they take. */
size_t cuda_attend_workspace(const msa_context *ctx, const msa_attend_args *args)
{
    return cuda_attend_prefill_supports(args) ? cuda_attend_prefill_workspace(args) : 0;
}

msa_status cuda_attend(msa_context *ctx, const msa_attend_args *args, void *workspace)
{
    if (args->q.shape[0] == 0) return MSA_OK;
    MSA_CUDA_TRY("attend", cudaSetDevice(cuda_state(ctx)->device));
    attend_path path = choose_path(args);
    if (path == ATTEND_DECODE) return cuda_attend_decode(ctx, args, NULL);
    if (path == ATTEND_PREFILL) return cuda_attend_prefill(ctx, args, workspace);
    return cuda_attend_generic(ctx, args);
}
