/* select for decode, its last step: the best blocks of a row from the numbers that a scan left in
 * memory, (M7)-(M9). One CTA per row (token, group). attend_decode.cu does the same where it
 * follows at once.
 */
#include "backend/cuda/ptx.cuh"
#include "backend/cuda/rank_blocks.cuh"
#include "backend/cuda/select_choose.cuh"

enum { CHOOSE_THREADS = 512 };

__global__ void __launch_bounds__(CHOOSE_THREADS)
    choose_kernel(const __grid_constant__ decode_select p)
{
    __shared__ RankSmem<CHOOSE_THREADS> sm;
    launch_dependents();
    int group = blockIdx.x % p.n_groups, token = blockIdx.x / p.n_groups;
    int n_visible =
        row_blocks(p, token).n_visible; /* the scan has waited for who wrote the lengths */
    int n_learned = p.topk - p.n_init - p.n_local;
    wait_prior_grid();
    if (n_visible > p.topk && n_learned > 0) {
        rank_blocks(sm, p.orders + (int64_t)blockIdx.x * p.row_blocks, p.n_init,
                    n_visible - p.n_local, n_learned);
        sort_chosen(sm, n_learned);
    }
    write_row(p, p.blocks + token * p.blocks_token + group * p.blocks_group, n_visible, sm.ids);
}

msa_status cuda_select_choose(msa_context *ctx, const decode_select *p, int64_t n_rows)
{
    decode_launch launch;
    MSA_CUDA_TRY("select", cudaLaunchKernelEx(early_launch(&launch, ctx, n_rows, CHOOSE_THREADS, 0),
                                              choose_kernel, *p));
    return MSA_OK;
}
