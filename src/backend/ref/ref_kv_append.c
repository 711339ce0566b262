/* Write the rows of new tokens into their slots of the cache, one number after the other. */
#include "backend/ref/ref_backend.h"
#include "backend/ref/ref_rows.h"

/* n numbers into a token's row of a lane; a lane of scale s stores x / s. */
static void write_row(const msa_kv_view *kv, const msa_tensor *lane, float scale, int32_t seq,
                      int64_t token, int32_t head, int32_t block_size, ref_row source, int64_t n)
{
    msa__kv_tile tile = msa__kv_block(kv, lane, seq, token / block_size, head, block_size);
    unsigned char *row =
        (unsigned char *)(uintptr_t)tile.data +
        token % block_size * tile.row_stride * (int64_t)msa_dtype_bytes(lane->dtype);
    for (int64_t d = 0; d < n; d++) {
        float x = load_f32(source.data, source.dtype, source.first + d);
        store_f32(row, lane->dtype, d, x / scale);
    }
}

static void append_token(const msa_kv_append_args *args, int32_t seq, int64_t i, int64_t position)
{
    const msa_kv_view *kv = &args->kv;
    int64_t dim = args->k.shape[2];
    for (int32_t r = 0; r < (int32_t)args->k.shape[1]; r++) {
        write_row(kv, &kv->k, kv->k_scale, seq, position, r, args->block_size,
                  ref_tensor_row(&args->k, i, r), dim);
        write_row(kv, &kv->v, kv->v_scale, seq, position, r, args->block_size,
                  ref_tensor_row(&args->v, i, r), dim);
    }
    if (!args->k_index.data) return;
    ref_row source = {args->k_index.data, i * args->k_index.stride[0], args->k_index.dtype, 1.0};
    write_row(kv, &kv->k_index, kv->k_index_scale, seq, position, 0, args->block_size, source,
              args->k_index.shape[1]);
}

msa_status msa__ref_kv_append(msa_context *ctx, const msa_kv_append_args *args)
{
    (void)ctx;
    const int32_t *cu = args->cu_seqlens_q;
    for (int32_t s = 0; s < args->kv.n_seqs; s++) {
        int64_t first_position = msa__kv_length(&args->kv, s) - (cu[s + 1] - cu[s]); /* (M2) */
        for (int64_t i = cu[s]; i < cu[s + 1]; i++) {
            append_token(args, s, i, first_position + i - cu[s]);
        }
    }
    return MSA_OK;
}
