/* See recall_row.h. */
#include "train/recall_row.h"

static int32_t is_forced(const msa__recall_choice *c, int64_t block, int64_t n_visible)
{
    return block < c->n_init || block >= n_visible - c->n_local;
}

/* The K blocks of largest mass, the lower id among equals; with `forced`, those that every
 * selection contains come first. */
static void find_best(const msa__recall_choice *c, const float *mass, int64_t n_visible,
                      int32_t forced, int32_t *best)
{
    int32_t n = 0, n_forced;
    for (int64_t block = 0; forced && block < n_visible; block++) {
        if (is_forced(c, block, n_visible)) best[n++] = (int32_t)block;
    }
    n_forced = n;
    for (int64_t block = 0; block < n_visible; block++) {
        if (forced && is_forced(c, block, n_visible)) continue;
        if (n == c->topk) {
            if (n == n_forced || mass[block] <= mass[best[n - 1]]) continue;
            n--;
        }
        int32_t at = n++;
        for (; at > n_forced && mass[block] > mass[best[at - 1]]; at--) best[at] = best[at - 1];
        best[at] = (int32_t)block;
    }
}

static int32_t contains(const int32_t *blocks, int32_t n, int32_t block)
{
    for (int32_t i = 0; i < n && blocks[i] >= 0; i++) {
        if (blocks[i] == block) return 1;
    }
    return 0;
}

/* What a selection shares with the best blocks, as shares of these. */
typedef struct overlap {
    double count, mass, captured;
} overlap;

static overlap compare(const msa__recall_choice *c, const float *mass, const int32_t *blocks,
                       const int32_t *best, double captured)
{
    double common = 0, common_mass = 0, best_mass = 0;
    for (int32_t i = 0; i < c->topk; i++) {
        double x = (double)mass[best[i]];
        int32_t both = contains(blocks, c->topk, best[i]);
        common += both;
        common_mass += both ? x : 0;
        best_mass += x;
    }
    double whole = best_mass > 0 ? best_mass : 1;
    return (overlap){common / c->topk, common_mass / whole, captured / whole};
}

void msa__recall_add_row(msa_recall *sums, const msa__recall_choice *choice, const float *mass,
                         int64_t n_visible, const int32_t *blocks, int32_t *best)
{
    double captured = 0;
    for (int32_t i = 0; i < choice->topk && blocks[i] >= 0; i++) {
        captured += (double)mass[blocks[i]];
    }
    find_best(choice, mass, n_visible, 0, best);
    overlap any = compare(choice, mass, blocks, best, captured);
    find_best(choice, mass, n_visible, 1, best);
    overlap forced = compare(choice, mass, blocks, best, captured);
    sums->n_rows++;
    sums->captured_mass += captured;
    sums->block_recall += any.count;
    sums->score_recall += any.mass;
    sums->oracle_ratio += any.captured;
    sums->block_recall_forced += forced.count;
    sums->score_recall_forced += forced.mass;
    sums->oracle_ratio_forced += forced.captured;
}

void msa__recall_mean(const msa_recall *sums, msa_recall *mean)
{
    double n = (double)sums->n_rows;
    *mean = (msa_recall){0, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0};
    if (sums->n_rows == 0) return;
    mean->n_rows = sums->n_rows;
    mean->captured_mass = sums->captured_mass / n;
    mean->block_recall = sums->block_recall / n;
    mean->score_recall = sums->score_recall / n;
    mean->oracle_ratio = sums->oracle_ratio / n;
    mean->block_recall_forced = sums->block_recall_forced / n;
    mean->score_recall_forced = sums->score_recall_forced / n;
    mean->oracle_ratio_forced = sums->oracle_ratio_forced / n;
    if (sums->n_scanned == 0) return;
    n = (double)sums->n_scanned;
    mean->n_scanned = sums->n_scanned;
    mean->rescored = sums->rescored / n;
    mean->rescored_max = sums->rescored_max;
    mean->rescored_blocks = sums->rescored_blocks / n;
    mean->rescored_random = sums->rescored_random / n;
    mean->fp8_recall = sums->fp8_recall / n;
}
