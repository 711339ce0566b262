/* select_attend: few rows of decode are ranked inside attend, all else is one after the other. */
#include "backend/cuda/attend.h"
#include "backend/cuda/select.h"

msa_status cuda_select_attend(msa_context *ctx, const msa_select_args *select,
                              const msa_attend_args *attend, void *workspace)
{
    block_orders orders;
    if (select->q_index.shape[0] == 0) return MSA_OK;
    if (!cuda_select_leaves_orders(ctx, select) || !cuda_attend_decode_ranks(ctx, attend)) {
        MSA_TRY(cuda_select(ctx, select, workspace));
        return cuda_attend(ctx, attend, workspace);
    }
    MSA_CUDA_TRY("select_attend", cudaSetDevice(cuda_state(ctx)->device));
    MSA_TRY(cuda_select_decode_orders(ctx, select, workspace, &orders));
    return cuda_attend_decode(ctx, attend, &orders);
}
