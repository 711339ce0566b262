/* One row of (M19): a selection beside the blocks that hold most of full attention's mass. */
#ifndef MSA_TRAIN_RECALL_ROW_H
#define MSA_TRAIN_RECALL_ROW_H

#include "model/config.h"
#include "msa/train.h"

#define MSA__RECALL_ROW_IDS 64 /* K is at most 64 */

/* Add a row with n_visible > K blocks to the sums.
 *
 * mass    [n_visible] mass of every visible block
 * blocks  [K] the selection: ids, then -1
 * best    scratch of MSA__RECALL_ROW_IDS */
void msa__recall_add_row(msa_recall *sums, const msa__config *config, const float *mass,
                         int64_t n_visible, const int32_t *blocks, int32_t *best);

/* Sums to means; ones without rows. */
void msa__recall_mean(const msa_recall *sums, msa_recall *mean);

#endif
