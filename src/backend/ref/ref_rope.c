/* Partial NeoX RoPE (L2), the reference. The angle is an f32 product by contract; the rest is
 * double. */
#include "backend/ref/ref_backend.h"
#include "base/numeric.h"

#include <math.h>

static void rotate_row(const msa_rope_args *args, int32_t position, int64_t x_row, int64_t out_row)
{
    const msa_tensor *x = &args->x, *out = &args->out;
    int64_t n_freqs = args->n_freqs;
    for (int64_t i = 0; i < n_freqs; i++) {
        float angle = (float)position * args->inv_freq[i];
        double cosine = cos((double)angle), sine = sin((double)angle);
        if (args->inverse) sine = -sine;
        double a = (double)load_f32(x->data, x->dtype, x_row + i);
        double b = (double)load_f32(x->data, x->dtype, x_row + n_freqs + i);
        store_f32(out->data, out->dtype, out_row + i, (float)(a * cosine - b * sine));
        store_f32(out->data, out->dtype, out_row + n_freqs + i, (float)(b * cosine + a * sine));
    }
    for (int64_t i = 2 * n_freqs; i < x->shape[2]; i++) {
        store_f32(out->data, out->dtype, out_row + i, load_f32(x->data, x->dtype, x_row + i));
    }
}

msa_status msa__ref_rope(msa_context *ctx, const msa_rope_args *args)
{
    (void)ctx;
    const msa_tensor *x = &args->x, *out = &args->out;
    for (int64_t t = 0; t < x->shape[0]; t++) {
        for (int64_t head = 0; head < x->shape[1]; head++) {
            rotate_row(args, args->positions[t], t * x->stride[0] + head * x->stride[1],
                       t * out->stride[0] + head * out->stride[1]);
        }
    }
    return MSA_OK;
}
