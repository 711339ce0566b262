/* Which tokens every expert sees, and in what portions the experts are worked off.
 *
 * A column is one token at one expert. Columns are sorted by expert, then by token; the shared
 * expert follows the routed ones as number n_experts and sees every token with weight 1. A segment
 * is up to MSA__PRODUCT_TOKENS columns of one expert; a wave is a run of segments whose packed
 * activations fit into the workspace together. Summing waves, and segments inside them, in this
 * order sums the experts of a token in ascending id.
 */
#ifndef MSA_CPU_MOE_ROUTE_H
#define MSA_CPU_MOE_ROUTE_H

#include "msa/layer.h"

#define MSA__WAVE_PANELS 32

typedef struct msa__moe_route {
    int64_t n_experts; /* the shared one included */
    int64_t *start;    /* [n_experts + 1] first column of every expert */
    int32_t *token;    /* [columns] counted from the first token of the piece */
    float *weight;     /* [columns] */
    int32_t *choice;   /* [columns] of routed experts: token * topk + place; NULL: not wanted */
} msa__moe_route;

typedef struct msa__moe_segment {
    int64_t expert, column, n_columns, n_panels;
    int64_t panel;        /* of its hidden rows in the wave */
    int64_t packed_panel; /* of its tokens; an earlier segment's when that has the same tokens */
} msa__moe_segment;

typedef struct msa__moe_wave {
    int64_t expert, column; /* where the next wave starts */
    int64_t n_segments, n_columns_max;
    int32_t is_first, is_last;
    msa__moe_segment segments[MSA__WAVE_PANELS];
} msa__moe_wave;

/* Columns of the widest expert's hidden rows. */
int64_t msa__moe_widest_hidden(const msa_moe_args *args);

/* One kind of product for the whole operator. */
int32_t msa__moe_is_bf16(const msa_moe_args *args);

/* Sort n_tokens tokens from first_token. */
void msa__moe_sort(msa__moe_route *route, const msa_moe_args *args, int64_t first_token,
                   int64_t n_tokens);

/* The next portion; a zeroed wave yields the first one. Ends with is_last. */
void msa__moe_next_wave(msa__moe_wave *wave, const msa__moe_route *route);

#endif
