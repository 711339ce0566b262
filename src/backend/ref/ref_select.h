/* What the exact scan and the eight-bit scan of the reference share. */
#ifndef MSA_REF_SELECT_H
#define MSA_REF_SELECT_H

#include "backend/ref/ref_backend.h"
#include "backend/ref/ref_rows.h"
#include "backend/ref/ref_topk.h"

/* (M6): the maximum over the visible tokens of a block; NaN tokens are ignored. */
float ref_pool_block(const msa_select_args *args, ref_row q, int32_t seq, int64_t block,
                     int64_t position);

/* Offer the blocks of row (i, r) whose rank the eight-bit keys leave open, and count them. */
void ref_offer_open(const msa_select_args *args, ref_row q, int64_t i, int64_t r, int32_t seq,
                    ref_topk *top);

#endif
