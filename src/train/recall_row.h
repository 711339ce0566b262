/* One row of (M19): a selection beside the blocks that hold most of full attention's mass. */
#ifndef MSA_TRAIN_RECALL_ROW_H
#define MSA_TRAIN_RECALL_ROW_H

#include "msa/train.h"

#include <stdint.h>

#define MSA__RECALL_ROW_IDS 64 /* K is at most 64 */

/* What a row may choose: K blocks, among them the first n_init and the last n_local. */
typedef struct msa__recall_choice {
    int32_t topk, n_init, n_local;
} msa__recall_choice;

/* Add a row with n_visible > K blocks to the sums.
 *
 * mass    [n_visible] mass of every visible block
 * blocks  [K] the selection: ids, then -1
 * best    scratch of MSA__RECALL_ROW_IDS */
void msa__recall_add_row(msa_recall *sums, const msa__recall_choice *choice, const float *mass,
                         int64_t n_visible, const int32_t *blocks, int32_t *best);

/* Sums to means; ones without rows. */
void msa__recall_mean(const msa_recall *sums, msa_recall *mean);

#endif
