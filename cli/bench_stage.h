/* What the rows of `msa bench attention --device cuda` share: one attention layer of MiniMax-M3's
 * shape in device memory.
 *
 * Pools of pages of sixteen layers, each as long as the longest context, cut into sequences of the
 * length a row asks for: rows visit other sequences in turn, so that what they read is not in a
 * cache of the device. Index keys are drawn one by one (no key comes twice in a sequence),
 * everything else is copied from random places of a buffer of random numbers. A layer's pages are
 * scattered over its pool, or, if asked, those of all layers over all of them.
 */
#ifndef CLI_BENCH_STAGE_H
#define CLI_BENCH_STAGE_H

#include "msa/msa.h"

enum {
    STAGE_Q_HEADS = 64,
    STAGE_KV_HEADS = 4,
    STAGE_DIM = 128, /* of heads and of the index */
    STAGE_BLOCK = 128,
    STAGE_TOPK = 16,
    STAGE_CHUNK = 8192, /* tokens of a prefill chunk; most rows of queries there are */
    STAGE_LAYERS = 16,  /* a longest context each */
    STAGE_MAX_SEQS = 64
};

typedef struct bench_stage {
    msa_context *ctx;
    int64_t max_context, n_pages;
    int32_t *table; /* [n_pages] on the host, as on the device */
    uint64_t random_state;
    const char *no_index8; /* why there is no eight-bit copy; NULL: there is one */
    /* on the device */
    void *k, *v, *k_index, *keys8, *bounds8, *noise;
    void *q, *q_index, *out, *blocks, *lse, *workspace;
    int32_t *device_table, *lens, *cu_seqlens;
    size_t workspace_bytes;
} bench_stage;

/* Sequences of one length, each with the same number of new tokens. */
typedef struct stage_shape {
    int32_t n_seqs, q_len, kv_len;
} stage_shape;

/* mixed_pages: those of all layers are in one pool. Returns NULL, or why not; stage_free in any
 * case. */
const char *stage_init(bench_stage *s, msa_context *ctx, int64_t max_context, uint64_t seed,
                       int32_t mixed_pages);
void stage_free(bench_stage *s);

/* Get ready for a shape: lengths on the device, workspace. Returns NULL, or why not. */
const char *stage_set(bench_stage *s, const stage_shape *shape);

/* How many batches of this shape lie side by side in the pool. */
int32_t stage_rotations(const bench_stage *s, const stage_shape *shape);

/* Fresh queries, copied from random places. */
msa_status stage_draw_queries(bench_stage *s);

/* Batch r of a shape, r below stage_rotations. Rows of queries and outputs follow one another where
 * all batches fit, and are the same otherwise. */
msa_select_args stage_select_args(const bench_stage *s, const stage_shape *shape, int32_t r,
                                  int32_t use_index8);
msa_attend_args stage_attend_args(const bench_stage *s, const stage_shape *shape, int32_t r);
msa_dense_attend_args stage_dense_args(const bench_stage *s, const stage_shape *shape, int32_t r);

/* What is run: bits; both are a layer of MSA. */
enum { RUN_SELECT = 1, RUN_ATTEND = 2, RUN_MSA = 3, RUN_DENSE = 4, RUN_INDEX8 = 8 };
msa_status stage_run(bench_stage *s, const stage_shape *shape, int32_t r, int32_t what);

/* A whole prompt of n_tokens in chunks: append, then what is asked for. */
msa_status stage_run_prompt(bench_stage *s, int32_t n_tokens, int32_t what);

/* First new token's row of batch r in queries and outputs. */
int64_t stage_first_row(const stage_shape *shape, int32_t r);
/* Pages of the sequences of batch r, [n_seqs, blocks], on the host. */
const int32_t *stage_pages(const bench_stage *s, const stage_shape *shape, int32_t r);
int32_t stage_blocks(const stage_shape *shape);

#endif
