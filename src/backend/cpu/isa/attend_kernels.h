/* The vector steps of attention over one tile of scores; each ISA compiles attend_steps.h once.
 *
 * A tile of scores is S^T: one row of MSA__PANEL = 16 numbers per key, lane j belonging to query
 * row j of the panel, row k at scores + k * ld. Maxima, exponentials and sums over keys are
 * therefore vertical, and the lanes never meet: what a lane computes does not depend on its
 * neighbours.
 */
#ifndef MSA_CPU_ATTEND_KERNELS_H
#define MSA_CPU_ATTEND_KERNELS_H

#include "backend/cpu/isa/kernels.h"

/* A number for every element of a tile: lane_step 1, row_step 0: one per column; lane_step 0,
 * row_step 16: one per row, written 16 times. */
typedef struct msa__tile_numbers {
    const float *at;
    int64_t row_step, lane_step;
} msa__tile_numbers;

typedef struct msa__attend_kernels {
    /* (M6): max[j] = scale * max over the keys, -inf at least, NaN ignored. Returns the lanes with
     * not max[j] <= bound[j]: a NaN bound lets every score pass. */
    uint32_t (*block_max)(float *max, const float *scores, int64_t ld, int64_t n_keys, float scale,
                          const float *bound);

    /* (M13) for one tile: t = scale * score in units of log2, running reference M and sum l of each
     * lane; P^T is turned into rows: p[j * ld_p + k] = exp2(t[k, j] - M[j]), zero for
     * n_keys <= k < n_slots (n_slots is a multiple of 16). M moves only when a maximum exceeds it
     * by more than 8 (or is the first), so that O is seldom rescaled. factor[j] = exp2(M_old - M);
     * returns nonzero when some factor is not 1. NaN scores give NaN sums. */
    int32_t (*softmax_f32)(float *p, int64_t ld_p, const float *scores, int64_t ld, int64_t n_keys,
                           int64_t n_slots, float scale, float *m, float *l, float *factor);
    int32_t (*softmax_bf16)(uint16_t *p, int64_t ld_p, const float *scores, int64_t ld,
                            int64_t n_keys, int64_t n_slots, float scale, float *m, float *l,
                            float *factor);

    /* row[j] *= factor[j] for 16 rows of n numbers, n a multiple of 16. */
    void (*scale_rows)(float *rows, int64_t ld, int64_t n, const float *factor);

    /* (M18) on a tile of n_rows rows of n numbers, n a multiple of 16: weights from scores,
     * x = exp2(scale * x - shift); and dS from dP, y = p * (y - delta). */
    void (*weigh)(float *x, int64_t ld, int64_t n_rows, int64_t n, float scale,
                  msa__tile_numbers shift);
    void (*slope)(float *y, const float *p, int64_t ld, int64_t n_rows, int64_t n,
                  msa__tile_numbers delta);
} msa__attend_kernels;

extern const msa__attend_kernels msa__attend_generic, msa__attend_avx2, msa__attend_avx512;
extern const msa__attend_kernels msa__attend_neon;

#endif
