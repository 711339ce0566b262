/* MoBA's choice as the equations say it, (B2)-(B4). */
#include "backend/ref/ref_backend.h"
#include "backend/ref/ref_rows.h"
#include "backend/ref/ref_topk.h"
#include "ops/block_means.h"

size_t msa__ref_moba_select_workspace(const msa_context *ctx, const msa_moba_select_args *args)
{
    (void)ctx;
    (void)args;
    return 0;
}

/* (B2): summed over the heads of a row and the pages of a block, rounded once. */
static float gate(const msa_moba_select_args *args, int32_t seq, int64_t first_mean, int64_t token,
                  int64_t row, int64_t block)
{
    int64_t group = args->q.shape[1] / args->kv.k.shape[1];
    int64_t heads_of_row = args->q.shape[1] / args->blocks.shape[1];
    double sum = 0;
    for (int64_t h = row * heads_of_row; h < (row + 1) * heads_of_row; h++) {
        ref_row q = ref_tensor_row(&args->q, token, h);
        for (int64_t page = block * args->n_pages; page < (block + 1) * args->n_pages; page++) {
            const float *mean =
                msa__mean_at(&args->means, &args->kv, first_mean, seq, page, h / group);
            ref_row key = {mean, 0, MSA_DTYPE_F32, 1.0};
            sum += ref_dot(q, key, args->q.shape[2]);
        }
    }
    return (float)sum;
}

/* (B4): the pages of the kept blocks, of the current one those up to the token's. */
static void write_pages(const msa_moba_select_args *args, const int32_t *kept, int64_t local_page,
                        int32_t *row)
{
    int64_t n = 0;
    for (int32_t k = 0; k < args->topk && kept[k] >= 0; k++) {
        for (int64_t page = (int64_t)kept[k] * args->n_pages;
             page < (int64_t)(kept[k] + 1) * args->n_pages && page <= local_page; page++) {
            row[n++] = (int32_t)page;
        }
    }
    while (n < args->blocks.shape[2]) row[n++] = -1;
}

static void select_row(const msa_moba_select_args *args, int32_t seq, int64_t first_mean,
                       int64_t token, int64_t position, int64_t row)
{
    int64_t local_page = position / args->block_size, current = local_page / args->n_pages;
    int32_t kept[REF_MAX_TOPK];
    ref_topk top = {.n_visible = current + 1, .topk = args->topk, .n_local = 1}; /* (B3) */
    for (int64_t b = 0; b < current; b++) {
        ref_topk_offer(&top, b, gate(args, seq, first_mean, token, row, b));
    }
    ref_topk_write(&top, kept);
    write_pages(args, kept, local_page, ref_i32_at(&args->blocks, token, row));
}

msa_status msa__ref_moba_select(msa_context *ctx, const msa_moba_select_args *args, void *workspace)
{
    (void)ctx;
    (void)workspace;
    const int32_t *cu = args->cu_seqlens_q;
    for (int32_t s = 0; s < args->kv.n_seqs; s++) {
        int64_t first_mean = msa__first_mean(&args->kv, s, args->block_size);
        int64_t first_position = msa__kv_length(&args->kv, s) - (cu[s + 1] - cu[s]); /* (M2) */
        for (int64_t i = cu[s]; i < cu[s + 1]; i++) {
            for (int64_t row = 0; row < args->blocks.shape[1]; row++) {
                select_row(args, s, first_mean, i, first_position + i - cu[s], row);
            }
        }
    }
    return MSA_OK;
}
