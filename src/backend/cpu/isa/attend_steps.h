/* The steps of attend_kernels.h written once over `lanes`, 16 floats of whatever an ISA offers.
 *
 * Included by attend_<isa>.c after lanes_<isa>.h, which defines: lanes, lanes_load, lanes_store,
 * lanes_set, lanes_add, lanes_mul, lanes_fma (a * b + c), lanes_max (the second operand when the
 * first is NaN), lanes_passes (bits of !(a <= b)), lanes_select (a where the bit is set, else b),
 * lanes_exp2, lanes_exp2_coarse (for weights rounded to bf16), lanes_bf16_pairs (bf16 of a and b
 * interleaved), lanes_store_transposed.
 */
#include "backend/cpu/isa/attend_kernels.h"

#include <math.h>

/* Four chains hide the latency of max and add. */
static inline lanes column_max(const float *scores, int64_t ld, int64_t n_keys)
{
    lanes low = lanes_set(-INFINITY);
    lanes a = low, b = low, c = low, d = low;
    int64_t k = 0;
    for (; k + 4 <= n_keys; k += 4) {
        a = lanes_max(lanes_load(scores + k * ld), a);
        b = lanes_max(lanes_load(scores + (k + 1) * ld), b);
        c = lanes_max(lanes_load(scores + (k + 2) * ld), c);
        d = lanes_max(lanes_load(scores + (k + 3) * ld), d);
    }
    for (; k < n_keys; k++) a = lanes_max(lanes_load(scores + k * ld), a);
    return lanes_max(lanes_max(a, b), lanes_max(c, d));
}

static uint32_t block_max(float *max, const float *scores, int64_t ld, int64_t n_keys, float scale,
                          const float *bound)
{
    lanes best = lanes_mul(column_max(scores, ld, n_keys), lanes_set(scale));
    lanes_store(max, best);
    return lanes_passes(best, lanes_load(bound));
}

/* How far a maximum may rise above the reference before M follows it: 2^8 fits P and l easily. */
#define SLACK_LOG2 8.0f

/* Moves M; minus_m = -M where it is finite, so that exp2(t - M) is 0 for t = -inf. */
static inline int32_t move_reference(lanes top, float *m, float *l, float *factor, lanes *minus_m)
{
    lanes old = lanes_load(m), low = lanes_set(-INFINITY), zero = lanes_set(0.0f);
    uint32_t risen = lanes_passes(top, lanes_add(old, lanes_set(SLACK_LOG2)));
    uint32_t fresh = ~lanes_passes(old, low) & 0xffffu; /* nothing summed yet: l = 0 and O = 0 */
    lanes now = lanes_select(risen, top, old);
    *minus_m = lanes_mul(lanes_select(lanes_passes(now, low), now, zero), lanes_set(-1.0f));
    lanes_store(m, now);
    risen &= ~fresh;
    if (!risen) return 0;
    lanes f = lanes_exp2(lanes_add(old, *minus_m));
    f = lanes_select(risen, f, lanes_set(1.0f));
    lanes_store(factor, f);
    lanes_store(l, lanes_mul(lanes_load(l), f));
    return 1;
}

static inline void add_sums(float *l, const lanes *sums)
{
    lanes sum = lanes_add(lanes_add(sums[0], sums[1]), lanes_add(sums[2], sums[3]));
    lanes_store(l, lanes_add(lanes_load(l), sum));
}

/* exp2(scale * score - M) of key k, zero past n_keys, and into the sum of its chain. */
static inline lanes weight_f32(const float *scores, int64_t ld, int64_t k, int64_t n_keys,
                               lanes scale, lanes minus_m, lanes *sums)
{
    if (k >= n_keys) return lanes_set(0.0f);
    lanes w = lanes_exp2(lanes_fma(lanes_load(scores + k * ld), scale, minus_m));
    sums[k % 4] = lanes_add(sums[k % 4], w);
    return w;
}

static inline lanes weight_bf16(const float *scores, int64_t ld, int64_t k, int64_t n_keys,
                                lanes scale, lanes minus_m, lanes *sums)
{
    if (k >= n_keys) return lanes_set(0.0f);
    lanes w = lanes_exp2_coarse(lanes_fma(lanes_load(scores + k * ld), scale, minus_m));
    sums[k % 4] = lanes_add(sums[k % 4], w);
    return w;
}

static int32_t softmax_f32(float *p, int64_t ld_p, const float *scores, int64_t ld, int64_t n_keys,
                           int64_t n_slots, float scale, float *m, float *l, float *factor)
{
    lanes by = lanes_set(scale), zero = lanes_set(0.0f), minus_m, w[16];
    lanes sums[4] = {zero, zero, zero, zero};
    lanes top = lanes_mul(column_max(scores, ld, n_keys), by);
    int32_t moved = move_reference(top, m, l, factor, &minus_m);
    for (int64_t key = 0; key < n_slots; key += 16) {
        int64_t end = key + 16 <= n_keys ? INT64_MAX : n_keys; /* full tiles test nothing */
        for (int i = 0; i < 16; i++) {
            w[i] = weight_f32(scores, ld, key + i, end, by, minus_m, sums);
        }
        lanes_store_transposed(p + key, ld_p * 4, w);
    }
    add_sums(l, sums);
    return moved;
}

static int32_t softmax_bf16(uint16_t *p, int64_t ld_p, const float *scores, int64_t ld,
                            int64_t n_keys, int64_t n_slots, float scale, float *m, float *l,
                            float *factor)
{
    lanes by = lanes_set(scale), zero = lanes_set(0.0f), minus_m, pairs[16];
    lanes sums[4] = {zero, zero, zero, zero};
    lanes top = lanes_mul(column_max(scores, ld, n_keys), by);
    int32_t moved = move_reference(top, m, l, factor, &minus_m);
    for (int64_t key = 0; key < n_slots; key += 32) {
        if (key + 32 <= n_keys) {
#pragma GCC unroll 16
            for (int i = 0; i < 16; i++) {
                int64_t k = key + 2 * i;
                lanes even = weight_bf16(scores, ld, k, INT64_MAX, by, minus_m, sums);
                lanes odd = weight_bf16(scores, ld, k + 1, INT64_MAX, by, minus_m, sums);
                pairs[i] = lanes_bf16_pairs(even, odd);
            }
        } else {
            for (int i = 0; i < 16; i++) {
                int64_t k = key + 2 * i;
                lanes even = weight_bf16(scores, ld, k, n_keys, by, minus_m, sums);
                lanes odd = weight_bf16(scores, ld, k + 1, n_keys, by, minus_m, sums);
                pairs[i] = lanes_bf16_pairs(even, odd);
            }
        }
        lanes_store_transposed(p + key, ld_p * 2, pairs);
    }
    add_sums(l, sums);
    return moved;
}

static void scale_rows(float *rows, int64_t ld, int64_t n, const float *factor)
{
    for (int64_t j = 0; j < MSA__PANEL; j++) {
        lanes f = lanes_set(factor[j]);
        float *row = rows + j * ld;
        for (int64_t i = 0; i < n; i += 16) lanes_store(row + i, lanes_mul(lanes_load(row + i), f));
    }
}

static void weigh(float *x, int64_t ld, int64_t n_rows, int64_t n, float scale,
                  msa__tile_numbers shift)
{
    lanes by = lanes_set(scale), minus = lanes_set(-1.0f);
    for (int64_t i = 0; i < n_rows; i++) {
        const float *row_shift = shift.at + i * shift.row_step;
        for (int64_t j = 0; j < n; j += 16) {
            lanes minus_shift = lanes_mul(lanes_load(row_shift + j * shift.lane_step), minus);
            float *at = x + i * ld + j;
            lanes_store(at, lanes_exp2(lanes_fma(lanes_load(at), by, minus_shift)));
        }
    }
}

static void slope(float *y, const float *p, int64_t ld, int64_t n_rows, int64_t n,
                  msa__tile_numbers delta)
{
    lanes minus = lanes_set(-1.0f);
    for (int64_t i = 0; i < n_rows; i++) {
        const float *row_delta = delta.at + i * delta.row_step;
        for (int64_t j = 0; j < n; j += 16) {
            lanes d = lanes_load(row_delta + j * delta.lane_step);
            float *at = y + i * ld + j;
            lanes difference = lanes_fma(d, minus, lanes_load(at));
            lanes_store(at, lanes_mul(lanes_load(p + i * ld + j), difference));
        }
    }
}
