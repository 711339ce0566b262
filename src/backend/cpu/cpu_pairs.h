/* Which tokens meet which blocks, for sparse and dense attention alike: the walks of the gradients.
 *
 * A walk over a tile of tokens visits blocks in ascending order; a walk over a block visits the
 * tokens of its sequence in ascending order. Both hand over batches of tokens that meet one block;
 * how a tile is cut does not change what a token or a block sees, nor in which order.
 */
#ifndef MSA_CPU_PAIRS_H
#define MSA_CPU_PAIRS_H

#include "backend/cpu/cpu_choices.h"
#include "backend/cpu/cpu_scratch.h"
#include "ops/reverse_index.h"

/* Who sees what. */
typedef struct msa__selection {
    const msa_tensor *blocks;       /* [T, Hkv, K]; NULL: every visible key */
    const msa_reverse_index *index; /* of these blocks */
    const msa_kv_view *kv;
    const int32_t *cu_seqlens_q;
    int64_t n_tokens; /* T */
    int32_t block_size;
    int64_t window, n_sink_tokens; /* without blocks; 0: none */
    const msa_tensor *tokens; /* [T, K] without blocks: keys that are not listed are hidden, though
                                 walks visit their blocks; NULL: all are listed */
} msa__selection;

#define MSA__BATCH_TOKENS 128

/* Tokens of one sequence that meet one block; n <= MSA__BATCH_TOKENS. */
typedef struct msa__pairs {
    int32_t seq;
    int64_t block;
    int64_t first_key; /* of the block, in its sequence */
    int32_t n_keys;    /* of the block */
    const int32_t *tokens;
    int64_t n;
} msa__pairs;

typedef void (*msa__pairs_fn)(void *arg, const msa__pairs *pairs);

/* Memory of a walk over tiles of at most tile_tokens. */
typedef struct msa__pairs_scratch {
    msa__choice *choices, *sorted;
    int32_t *tokens;
} msa__pairs_scratch;
void msa__pairs_scratch_take(const msa__selection *selection, msa__arena *arena,
                             int64_t tile_tokens, msa__pairs_scratch *scratch);

void msa__walk_tile(const msa__selection *selection, const msa__tile *tile, int64_t group,
                    int64_t batch, const msa__pairs_scratch *scratch, msa__pairs_fn visit,
                    void *arg);

/* Blocks of all sequences in the order of their numbers. */
typedef struct msa__block_ref {
    int32_t seq, block;
} msa__block_ref;
int64_t msa__max_blocks(const msa__selection *selection);
int64_t msa__list_blocks(const msa__selection *selection, msa__block_ref *refs);

/* tokens holds MSA__BATCH_TOKENS. */
void msa__walk_block(const msa__selection *selection, msa__block_ref ref, int64_t number,
                     int64_t group, int64_t batch, int32_t *tokens, msa__pairs_fn visit, void *arg);

/* (M2): position of a token in its sequence. */
static inline int64_t msa__position(const msa__selection *selection, int32_t seq, int64_t token)
{
    return msa__kv_length(selection->kv, seq) - selection->cu_seqlens_q[seq + 1] + token;
}

/* The keys of a block that a token sees: begin <= key < end and, with sinks, those below sink. */
typedef struct msa__key_range {
    int32_t begin, end, sink;
} msa__key_range;
msa__key_range msa__keys_of(const msa__selection *selection, const msa__pairs *pairs,
                            int64_t token);

/* keep[j]: whether the token's row of `tokens` lists key j of the block. */
void msa__find_listed(const msa_tensor *tokens, int64_t token, const msa__pairs *pairs,
                      uint8_t *keep);

#endif
