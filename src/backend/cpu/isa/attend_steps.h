/* The steps of attend_kernels.h written once over `lanes`, 16 floats of whatever an ISA offers.
 *
 * Included by attend_<isa>.c after lanes_<isa>.h, which defines: lanes, lanes_load, lanes_store,
 * lanes_set, lanes_add, lanes_mul, lanes_fma (a * b + c), lanes_max (the second operand when the
 * first is NaN), lanes_passes (bits of !(a <= b)), lanes_select (a where the bit is set, else b),
 * lanes_exp2, lanes_bf16_pairs (bf16 of a and b interleaved), lanes_store_transposed.
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

/* Moves M; shift = M where it is finite, so that exp2(t - shift) is 0 for t = -inf. */
static inline int32_t move_reference(lanes top, float *m, float *l, float *factor, lanes *shift)
{
    lanes old = lanes_load(m), low = lanes_set(-INFINITY), zero = lanes_set(0.0f);
    uint32_t risen = lanes_passes(top, lanes_add(old, lanes_set(SLACK_LOG2)));
    uint32_t fresh = ~lanes_passes(old, low) & 0xffffu; /* nothing summed yet: l = 0 and O = 0 */
    lanes now = lanes_select(risen, top, old);
    *shift = lanes_select(lanes_passes(now, low), now, zero);
    lanes_store(m, now);
    risen &= ~fresh;
    if (!risen) return 0;
    lanes minus_one = lanes_set(-1.0f);
    lanes f = lanes_exp2(lanes_fma(*shift, minus_one, old));
    f = lanes_select(risen, f, lanes_set(1.0f));
    lanes_store(factor, f);
    lanes_store(l, lanes_mul(lanes_load(l), f));
    return 1;
}

/* exp2(scale * score - shift) of 16 keys from `key`, zero past n_keys; added to sums in turn. */
static inline void weights_of_16(lanes *w, lanes *sums, const float *scores, int64_t ld,
                                 int64_t key, int64_t n_keys, lanes scale, lanes minus_shift)
{
    int64_t n = n_keys - key < 16 ? n_keys - key : 16;
    const float *row = scores + key * ld;
    if (n == 16) {
        for (int i = 0; i < 16; i++) {
            w[i] = lanes_exp2(lanes_fma(lanes_load(row + i * ld), scale, minus_shift));
            sums[i % 4] = lanes_add(sums[i % 4], w[i]);
        }
        return;
    }
    for (int64_t i = 0; i < 16; i++) {
        w[i] = lanes_set(0.0f);
        if (i >= n) continue;
        w[i] = lanes_exp2(lanes_fma(lanes_load(row + i * ld), scale, minus_shift));
        sums[i % 4] = lanes_add(sums[i % 4], w[i]);
    }
}

static inline void add_sums(float *l, const lanes *sums)
{
    lanes sum = lanes_add(lanes_add(sums[0], sums[1]), lanes_add(sums[2], sums[3]));
    lanes_store(l, lanes_add(lanes_load(l), sum));
}

static int32_t softmax_f32(float *p, int64_t ld_p, const float *scores, int64_t ld, int64_t n_keys,
                           int64_t n_slots, float scale, float *m, float *l, float *factor)
{
    lanes by = lanes_set(scale), shift, zero = lanes_set(0.0f);
    lanes top = lanes_mul(column_max(scores, ld, n_keys), by);
    int32_t moved = move_reference(top, m, l, factor, &shift);
    lanes minus_shift = lanes_mul(shift, lanes_set(-1.0f));
    lanes sums[4] = {zero, zero, zero, zero}, w[16];
    for (int64_t key = 0; key < n_slots; key += 16) {
        weights_of_16(w, sums, scores, ld, key, n_keys, by, minus_shift);
        lanes_store_transposed(p + key, ld_p * 4, w);
    }
    add_sums(l, sums);
    return moved;
}

static int32_t softmax_bf16(uint16_t *p, int64_t ld_p, const float *scores, int64_t ld,
                            int64_t n_keys, int64_t n_slots, float scale, float *m, float *l,
                            float *factor)
{
    lanes by = lanes_set(scale), shift, zero = lanes_set(0.0f);
    lanes top = lanes_mul(column_max(scores, ld, n_keys), by);
    int32_t moved = move_reference(top, m, l, factor, &shift);
    lanes minus_shift = lanes_mul(shift, lanes_set(-1.0f));
    lanes sums[4] = {zero, zero, zero, zero}, w[16], pairs[16];
    for (int64_t key = 0; key < n_slots; key += 32) {
        for (int64_t half = 0; half < 2; half++) {
            weights_of_16(w, sums, scores, ld, key + 16 * half, n_keys, by, minus_shift);
            for (int i = 0; i < 8; i++) {
                pairs[8 * half + i] = lanes_bf16_pairs(w[2 * i], w[2 * i + 1]);
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
