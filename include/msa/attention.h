/* Attention operators: select, attend, dense attend, merge, and writing to the paged cache.
 *
 * Notation (docs/glossary.md): T query tokens of the batch, B sequences, S key tokens of a sequence,
 * Hq query heads, Hkv key/value heads, G = Hq / Hkv, D head dim, Di index dim, Bk block size,
 * N = ceil(S / Bk) blocks, K blocks kept per token and group, P = Bk page size.
 *
 * Every operator has a plan and a run call. Planning checks shapes, dtypes and ranges and sizes the
 * workspace; it ignores data pointers, so it can be done once for the largest shapes. Running checks
 * everything again, writes nothing when a check fails, and never allocates.
 */
#ifndef MSA_ATTENTION_H
#define MSA_ATTENTION_H

#include "msa/context.h"
#include "msa/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Result of planning one operator. The workspace is the caller's: any memory of at least
 * workspace_bytes aligned to 64; its contents need not survive between runs. */
typedef struct msa_plan {
    uint32_t struct_size;
    uint32_t op; /* which operator made it; checked when it runs */
    size_t workspace_bytes;
} msa_plan;

/* Keys, values and index keys of a batch for one layer, paged or packed.
 *
 * Paged  (page_table != NULL): k, v [pages, Hkv, P, D], k_index [pages, P, Di]; block b of sequence s
 *        is page page_table[s * page_table_stride + b]; P = Bk.
 * Packed (cu_seqlens_k != NULL): k, v [sum S, Hkv, D], k_index [sum S, Di]; sequence s owns rows
 *        cu_seqlens_k[s] .. cu_seqlens_k[s+1].
 * kv_lens[s] is S of sequence s, the new tokens included (optional when packed).
 * Slots past kv_lens are never read as values: they may hold anything.
 *
 * dtypes f32, bf16 or fp8_e4m3 per lane; an fp8 value x stands for scale * x (scale 0 means 1).
 */
typedef struct msa_kv_view {
    msa_tensor k, v, k_index; /* k_index absent (data NULL) where an operator does not use it */
    const int32_t *page_table;
    int64_t page_table_stride;
    const int32_t *cu_seqlens_k;
    const int32_t *kv_lens;
    int32_t n_seqs; /* B */
    float k_scale, v_scale, k_index_scale;
} msa_kv_view;

/* An eight-bit copy of the index keys of a paged view, made by msa_index_quantize.
 *
 * Key j of page g is bounds[g, 0] * keys[g, j, :] and an error; bounds[g, 1] and bounds[g, 2] are at
 * least the Euclidean norms of every error row and of every dequantised row of the page. Only pages
 * that are full for a sequence are read: a page that is not is the local block of its tokens. */
typedef struct msa_index8 {
    msa_tensor keys;   /* [pages, P, Di] i8 */
    msa_tensor bounds; /* [pages, 3] f32 */
} msa_index8;

/* ---- select ------------------------------------------------------------------------------- */

typedef struct msa_select_args {
    uint32_t struct_size;
    uint32_t flags;
    msa_tensor q_index;          /* [T, Hkv, Di] f32, bf16 or f16 */
    msa_kv_view kv;              /* uses k_index; k and v may be absent */
    const int32_t *cu_seqlens_q; /* [B+1] */
    int32_t block_size;          /* Bk, a power of two in 16..256; 0: 128 */
    int32_t topk;                /* K in 1..64, forced blocks included; 0: 16 */
    int32_t n_init;              /* forced leading blocks; default 0 */
    int32_t n_local;             /* forced newest blocks; 0: 1; -1: none; n_init + n_local <= K */
    float index_scale;           /* of the index LSE only; 0: 1/sqrt(Di). Ranking never scales */
    int32_t settled;             /* 1: index keys before the query tokens are final, see below */
    msa_tensor blocks;       /* out [T, Hkv, K] i32 */
    msa_tensor block_scores; /* out, optional [T, Hkv, N] f32; blocks past the local one get -inf */
    msa_tensor index_lse;    /* out, optional [T, Hkv] f32: LSE of scaled scores, selected tokens */
    msa_index8 index8;       /* optional, paged views: scan this copy first; no block_scores then */
    msa_tensor n_rescored;   /* out, optional with index8, [T, Hkv] i32: blocks scored from k_index */
} msa_select_args;

/* Score every visible key with the index branch, pool by block maximum, keep the K best blocks.
 *
 * Math      (M5)-(M10): raw dot products with fp32 accumulation, token-causal maximum per block
 * Result    ids ascending, the local block last (with n_local = -1 it competes like any other, by
 * what is visible of it), then -1; exactly min(K, visible blocks) ids;
 *           ties to the lower id, NaN tokens ignored by the pooling, +0 = -0
 * Index8    the same sets: (Q1)-(Q5) bound every block score from the eight-bit keys, and the blocks
 *           whose rank the bounds leave open are scored from k_index. It saves half of the bytes
 *           where a fast kernel exists; elsewhere every block is scored from k_index
 * Settled   a promise: the index keys (and, where given, their copy and bounds) of every token before
 *           a sequence's query tokens, positions < S - n_q, were written by work that was complete
 *           before the last operator ahead on the stream began. That operator may still write the
 *           step's own keys, lengths and the page table. A backend may then read settled keys before
 *           that operator ends; one that reads nothing early ignores it. The rows are the same
 * Numerics  f32 for f32/f16 inputs, bf16 products with f32 sums otherwise; deterministic, the same
 *           bits for every thread count
 * Ownership all tensors borrowed for the call
 * Errors    MSA_EINVAL argument, value and rule; MSA_EUNSUPPORTED dtype combination
 */
MSA_API MSA_CHECK_RESULT msa_status msa_select_plan(msa_context *ctx, const msa_select_args *args,
                                                    msa_plan *plan);
MSA_API MSA_CHECK_RESULT msa_status msa_select(msa_context *ctx, const msa_plan *plan,
                                               const msa_select_args *args, void *workspace,
                                               size_t workspace_bytes);

typedef struct msa_block_topk_args {
    uint32_t struct_size;
    uint32_t flags;
    msa_tensor scores;        /* [T, Hkv, N] f32 */
    const int32_t *n_visible; /* [T] visible blocks of each token, 0..N */
    int32_t topk, n_init, n_local, reserved;
    msa_tensor blocks; /* out [T, Hkv, K] i32 */
} msa_block_topk_args;

/* Stand-alone selection from block scores: (M7)-(M9), NaN ranks below -inf. No workspace. */
MSA_API MSA_CHECK_RESULT msa_status msa_block_topk(msa_context *ctx,
                                                   const msa_block_topk_args *args);

/* ---- attend ------------------------------------------------------------------------------- */

typedef struct msa_attend_args {
    uint32_t struct_size;
    uint32_t flags;
    msa_tensor q; /* [T, Hq, D] f32, bf16 or f16 */
    msa_kv_view kv;
    const int32_t *cu_seqlens_q; /* [B+1] */
    msa_tensor blocks;           /* [T, Hkv, K] i32: ascending unique ids, then -1 */
    int32_t block_size;          /* Bk; 0: 128 */
    float scale;                 /* softmax scale; 0: 1/sqrt(D) */
    msa_tensor out;              /* [T, Hq, D], dtype of q */
    msa_tensor lse;              /* optional [T, Hq] f32, natural log */
} msa_attend_args;

/* Exact softmax attention over the selected blocks, prefill, chunk or decode.
 *
 * Math      (M10), (M11); an empty row gives O = 0, L = -inf
 * Numerics  f32 accumulation and statistics; blocks are visited in ascending order for every row, so
 *           the result of a row does not depend on the batch or chunk it came in
 * Errors    MSA_EINVAL; also a row that is not ascending, or an id beyond the token's local block
 */
MSA_API MSA_CHECK_RESULT msa_status msa_attend_plan(msa_context *ctx, const msa_attend_args *args,
                                                    msa_plan *plan);
MSA_API MSA_CHECK_RESULT msa_status msa_attend(msa_context *ctx, const msa_plan *plan,
                                               const msa_attend_args *args, void *workspace,
                                               size_t workspace_bytes);

/* ---- select and attend in one ---------------------------------------------------------------- */

typedef struct msa_select_attend_args {
    uint32_t struct_size;
    uint32_t flags;
    const msa_select_args *select;
    const msa_attend_args *attend; /* of the rows that select writes: the same blocks, cu_seqlens_q,
                                      block_size and, in kv, page table and lengths */
} msa_select_attend_args;

/* msa_select, then msa_attend over its rows: the same outputs, the same bits, the rows included. A
 * backend may do both in fewer steps; a decoding GPU saves the latency of one between them.
 *
 * Ownership the two argument structs and all tensors borrowed for the call
 * Errors    as both operators; MSA_EINVAL where the two do not belong together
 */
MSA_API MSA_CHECK_RESULT msa_status msa_select_attend_plan(msa_context *ctx,
                                                           const msa_select_attend_args *args,
                                                           msa_plan *plan);
MSA_API MSA_CHECK_RESULT msa_status msa_select_attend(msa_context *ctx, const msa_plan *plan,
                                                      const msa_select_attend_args *args,
                                                      void *workspace, size_t workspace_bytes);

typedef struct msa_dense_attend_args {
    uint32_t struct_size;
    uint32_t flags;
    msa_tensor q; /* [T, Hq, D] */
    msa_kv_view kv;
    const int32_t *cu_seqlens_q;
    int32_t block_size; /* page size of a paged view, tile of a packed one; 0: 128 */
    float scale;        /* 0: 1/sqrt(D) */
    int64_t window;     /* W: a token sees itself and the W-1 before it; 0: everything */
    int64_t n_sink_tokens;   /* with a window: the first tokens stay visible too */
    const float *sink_logit; /* optional [Hq]: one extra key of this logit and value 0 */
    msa_tensor out, lse;     /* as msa_attend; the LSE contains the sink logit */
} msa_dense_attend_args;

/* Causal GQA over every visible key: M3's full layers, and the baseline of every comparison. */
MSA_API MSA_CHECK_RESULT msa_status msa_dense_attend_plan(msa_context *ctx,
                                                          const msa_dense_attend_args *args,
                                                          msa_plan *plan);
MSA_API MSA_CHECK_RESULT msa_status msa_dense_attend(msa_context *ctx, const msa_plan *plan,
                                                     const msa_dense_attend_args *args,
                                                     void *workspace, size_t workspace_bytes);

/* ---- merge -------------------------------------------------------------------------------- */

typedef struct msa_attend_merge_args {
    uint32_t struct_size;
    uint32_t flags;
    msa_tensor out_a, lse_a; /* [T, Hq, D] f32, bf16 or f16; [T, Hq] f32 */
    msa_tensor out_b, lse_b;
    msa_tensor out, lse; /* out may alias an input; lse optional */
} msa_attend_merge_args;

/* Merge two partial results over disjoint key sets, (M12). No workspace. */
MSA_API MSA_CHECK_RESULT msa_status msa_attend_merge(msa_context *ctx,
                                                     const msa_attend_merge_args *args);

/* ---- cache append ------------------------------------------------------------------------- */

typedef struct msa_kv_append_args {
    uint32_t struct_size;
    uint32_t flags;
    msa_tensor k, v;    /* [T, Hkv, D] f32, bf16 or f16: rows of the new tokens */
    msa_tensor k_index; /* [T, Di], or absent; must be present exactly where kv.k_index is */
    const int32_t *cu_seqlens_q; /* [B+1] */
    msa_kv_view kv;              /* kv_lens already counts the new tokens */
    int32_t block_size;
    int32_t reserved;
} msa_kv_append_args;

/* Write new keys, values and index keys into their slots, the three lanes together, converting to the
 * cache's dtypes (fp8: divide by the scale, round to nearest even, saturate at +-448). */
MSA_API MSA_CHECK_RESULT msa_status msa_kv_append(msa_context *ctx, const msa_kv_append_args *args);

/* ---- eight-bit copy of the index keys ------------------------------------------------------- */

typedef struct msa_index_quantize_args {
    uint32_t struct_size;
    uint32_t flags;
    msa_kv_view kv;              /* paged; reads k_index; kv_lens counts the new tokens */
    const int32_t *cu_seqlens_q; /* [B+1]: the new tokens of each sequence */
    int64_t n_tokens;            /* T = cu_seqlens_q[B] */
    int32_t block_size;          /* P; 0: 128 */
    int32_t reserved;
    msa_index8 index8; /* out: keys and bounds of the pages that the new tokens filled */
} msa_index_quantize_args;

/* Quantise the pages that became full with the new tokens: those with a new token in them and P tokens
 * in all. Call it after every msa_kv_append whose view a select with index8 will see; pages filled
 * again after a truncation are quantised again, pages full before are left alone.
 *
 * Math      (Q1), (Q2); one scale per page. A page with a NaN, an infinity or a norm beyond 2^60 gets
 *           infinite bounds, so that it is always scored from k_index
 * Errors    MSA_EINVAL
 */
MSA_API MSA_CHECK_RESULT msa_status msa_index_quantize(msa_context *ctx,
                                                       const msa_index_quantize_args *args);

/* Argument structs start zeroed with their size set. */
#define MSA_ARGS_INIT(type)                                                                        \
    static inline void type##_init(type *args)                                                     \
    {                                                                                              \
        unsigned char *bytes = (unsigned char *)args;                                              \
        size_t i;                                                                                  \
        for (i = 0; i < sizeof(*args); i++) bytes[i] = 0;                                          \
        args->struct_size = (uint32_t)sizeof(*args);                                               \
    }
MSA_ARGS_INIT(msa_plan)
MSA_ARGS_INIT(msa_select_args)
MSA_ARGS_INIT(msa_block_topk_args)
MSA_ARGS_INIT(msa_attend_args)
MSA_ARGS_INIT(msa_select_attend_args)
MSA_ARGS_INIT(msa_dense_attend_args)
MSA_ARGS_INIT(msa_attend_merge_args)
MSA_ARGS_INIT(msa_kv_append_args)
MSA_ARGS_INIT(msa_index_quantize_args)

#ifdef __cplusplus
}
#endif
#endif
