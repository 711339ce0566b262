/* Softmax attention of packed query rows over one block of keys: what attend and dense attend
 * share.
 *
 * Query rows come in panels of 16. Their running state (M13) is m and l, one number per row in
 * units of log2, and O, head_dim numbers per row, not yet divided by l. A row sees the blocks in
 * ascending order and never its neighbours, so its result does not depend on the panel it sits in.
 */
#ifndef MSA_CPU_ATTENTION_H
#define MSA_CPU_ATTENTION_H

#include "backend/cpu/cpu_queries.h"
#include "backend/cpu/cpu_scratch.h"
#include "backend/cpu/isa/attend_kernels.h"
#include "ops/kv_tile.h"

/* One attention problem. */
typedef struct msa__attention {
    const msa__cpu_kernels *kernels;
    const msa_tensor *q;
    const msa_kv_view *kv;
    const msa_tensor *out, *lse;
    int32_t block_size;
    int32_t n_slots;  /* columns of P: block_size, at least 32 */
    int32_t bf16;     /* products of bf16; otherwise of f32 */
    int64_t group;    /* G */
    int64_t head_dim; /* D */
    float scale_log2; /* raw score -> log2 of the weight */
} msa__attention;

msa__attention msa__attention_make(const msa__cpu_kernels *kernels, const msa_tensor *q,
                                   const msa_kv_view *kv, const msa_tensor *out,
                                   const msa_tensor *lse, int32_t block_size, float scale);

/* Panels that go through the steps of a block together. */
#define MSA__STEP_PANELS 2

/* Memory of one thread for one block. */
typedef struct msa__attend_scratch {
    void *k;       /* the block's keys, where the cache's dtype must be converted */
    void *v;       /* its values, packed */
    void *v_tile;  /* values packed for a single row */
    float *scores; /* S^T [block_size][16 * MSA__STEP_PANELS] */
    void *p;       /* P [16 * MSA__STEP_PANELS][n_slots] */
    void *gather;  /* 16 query rows */
} msa__attend_scratch;

void msa__attend_scratch_take(const msa__attention *at, msa__arena *arena,
                              msa__attend_scratch *scratch);

/* Query rows and their state. */
typedef struct msa__attend_rows {
    unsigned char *q; /* panels, msa__panel_bytes apart */
    float *m, *l, *o; /* [rows], [rows], [rows][head_dim]; rows = 16 * panels */
} msa__attend_rows;

size_t msa__panel_bytes(const msa__attention *at);
void msa__attend_rows_take(const msa__attention *at, msa__arena *arena, int64_t n_rows,
                           msa__attend_rows *rows);
void msa__attend_rows_clear(const msa__attention *at, const msa__attend_rows *rows, int64_t n_rows);

/* A block of one sequence and head. */
typedef struct msa__attend_block {
    msa__kv_tile k_tile, v_tile;
    const void *k; /* keys in the products' dtype */
    int64_t ld_k;
    int32_t n_keys; /* the keys in use: a prefix of the block */
    int32_t v_finite;
} msa__attend_block;

/* Make the first n_keys keys and values of a block ready; masked: some row will hide some of them.
 */
void msa__attend_load(const msa__attention *at, const msa__attend_scratch *scratch, int32_t seq,
                      int64_t block, int32_t head, int32_t n_keys, int32_t masked,
                      msa__attend_block *ready);

/* Keys a row sees: begin <= key < end, and those below `sink` as well; arrays of one per row. */
typedef struct msa__attend_mask {
    const int32_t *begin, *end;
    int32_t sink;
} msa__attend_mask;

/* Let n_panels panels of rows attend to the block; mask NULL: to all its keys. */
void msa__attend_block_rows(const msa__attention *at, const msa__attend_scratch *scratch,
                            const msa__attend_block *block, const msa__attend_rows *rows,
                            int64_t n_panels, const msa__attend_mask *mask);

/* O / l and L of rows 0..n_rows-1, which are rows `first`.. of the queries. */
void msa__attend_finish(const msa__attention *at, const msa__attend_rows *rows, int64_t n_rows,
                        const msa__query_rows *queries, int64_t first);

/* Fetch one of n_parts parts of a block's tiles towards the cache. */
void msa__attend_prefetch(const msa__attention *at, int32_t seq, int64_t block, int32_t head,
                          int64_t part, int64_t n_parts);

#endif
