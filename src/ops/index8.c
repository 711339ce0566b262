/* See index8.h. */
#include "ops/index8.h"

#include "base/numeric.h"
#include "ops/kv_tile.h"

#include <math.h>

float msa__index8_round_up(double x)
{
    float y = (float)x;
    return (double)y < x ? nextafterf(y, INFINITY) : y;
}

int32_t msa__index8_round(double x, float scale)
{
    double n = nearbyint(x / (double)scale);
    return (int32_t)(n > 127 ? 127 : n < -127 ? -127 : n);
}

/* A norm that was summed in double, as the f32 that bounds it. */
static float norm_bound(double sum_of_squares)
{
    double norm = sqrt(sum_of_squares) * (1 + 0x1p-40);
    return msa__index8_round_up(norm > MSA__INDEX8_MIN_NORM ? norm : MSA__INDEX8_MIN_NORM);
}

/* Largest |x| of a page; infinite when a norm is not finite or beyond the limit. */
static double page_maximum(const msa__kv_tile *tile, msa_dtype dtype, float scale, int64_t dim)
{
    double max = 0;
    for (int32_t j = 0; j < tile->n_tokens; j++) {
        double sum = 0;
        for (int64_t d = 0; d < dim; d++) {
            double x =
                (double)scale * (double)load_f32(tile->data, dtype, j * tile->row_stride + d);
            sum += x * x;
            max = fabs(x) > max ? fabs(x) : max;
        }
        if (!(sum < MSA__INDEX8_MAX_NORM * MSA__INDEX8_MAX_NORM)) return HUGE_VAL;
    }
    return max;
}

void msa__index8_quantize(const msa_index_quantize_args *args, int32_t seq, int64_t block)
{
    const msa_tensor *lane = &args->kv.k_index, *keys = &args->index8.keys;
    const msa_tensor *bounds = &args->index8.bounds;
    int64_t dim = lane->shape[2];
    int64_t page = args->kv.page_table[seq * args->kv.page_table_stride + block];
    msa__kv_tile tile = msa__kv_block(&args->kv, lane, seq, block, 0, args->block_size);
    double max = page_maximum(&tile, lane->dtype, args->kv.k_index_scale, dim);
    int finite = max < HUGE_VAL;
    float scale = finite ? msa__index8_scale(max) : 1;
    double worst_error = 0, worst_norm = 0;
    for (int32_t j = 0; j < tile.n_tokens; j++) {
        int8_t *row = (int8_t *)keys->data + page * keys->stride[0] + j * keys->stride[1];
        double error = 0, norm = 0;
        for (int64_t d = 0; d < dim; d++) {
            double x = (double)load_f32(tile.data, lane->dtype, j * tile.row_stride + d);
            x *= (double)args->kv.k_index_scale;
            int32_t n = finite ? msa__index8_round(x, scale) : 0;
            double back = (double)scale * n;
            row[d] = (int8_t)n;
            error += (x - back) * (x - back);
            norm += back * back;
        }
        worst_error = error > worst_error ? error : worst_error;
        worst_norm = norm > worst_norm ? norm : worst_norm;
    }
    float *out = (float *)bounds->data + page * bounds->stride[0];
    out[0] = scale;
    out[1] = finite ? norm_bound(worst_error) : INFINITY;
    out[2] = finite ? norm_bound(worst_norm) : INFINITY;
}
