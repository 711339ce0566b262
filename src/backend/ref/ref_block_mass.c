/* The probability that dense attention puts on every block, mean over the heads of a group. */
#include "backend/ref/ref_backend.h"
#include "backend/ref/ref_gradient.h"

size_t msa__ref_block_mass_workspace(const msa_context *ctx, const msa_block_mass_args *args)
{
    (void)ctx;
    (void)args;
    return 0;
}

/* Of query i, group r. */
static double mass_of(const msa_block_mass_args *args, int32_t seq, int64_t i, int64_t r,
                      int64_t block, int64_t position)
{
    const msa_kv_view *kv = &args->kv;
    int64_t group = args->q.shape[1] / kv->k.shape[1], first = block * args->block_size;
    double sum = 0;
    for (int64_t j = first; j < first + args->block_size && j <= position; j++) {
        ref_row key = ref_kv_row(kv, &kv->k, kv->k_scale, seq, j, (int32_t)r, args->block_size);
        for (int64_t h = r * group; h < (r + 1) * group; h++) {
            double t = (double)args->scale *
                       ref_dot(ref_tensor_row(&args->q, i, h), key, args->q.shape[2]);
            sum += ref_weight(t, (double)*ref_f32_at(&args->lse, i, h));
        }
    }
    return sum / (double)group;
}

msa_status msa__ref_block_mass(msa_context *ctx, const msa_block_mass_args *args, void *workspace)
{
    (void)ctx;
    (void)workspace;
    const int32_t *cu = args->cu_seqlens_q;
    for (int32_t s = 0; s < args->kv.n_seqs; s++) {
        int64_t first_position = msa__kv_length(&args->kv, s) - (cu[s + 1] - cu[s]); /* (M2) */
        for (int64_t i = cu[s]; i < cu[s + 1]; i++) {
            for (int64_t r = 0; r < args->kv.k.shape[1]; r++) {
                float *mass = ref_f32_at(&args->mass, i, r);
                for (int64_t b = 0; b < args->mass.shape[2]; b++) {
                    mass[b] = (float)mass_of(args, s, i, r, b, first_position + i - cu[s]);
                }
            }
        }
    }
    return MSA_OK;
}
