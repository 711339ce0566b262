/* How select divides the index keys of a decode batch among CTAs, computed on the device.
 *
 * An item is (sequence, tile of its query tokens): the pages that the tile's rows have to rank.
 * Items lie one behind the other in sequence order, and CTA c scores pages c * share .. (c+1) *
 * share - 1 of that line, whatever sequences they belong to. What it finds goes to memory: a row
 * (token, group) has one number per block there, an order of its score (topk.cuh), and
 * select_choose.cu takes each row's best.
 */
#ifndef MSA_CUDA_SELECT_DECODE_CUH
#define MSA_CUDA_SELECT_DECODE_CUH

#include "backend/cuda/cuda_device.h"
#include "backend/cuda/ptx.cuh"
#include "backend/cuda/ring_place.cuh"
#include "backend/cuda/topk.cuh"

enum { DECODE_BLOCK = 128 }; /* Bk of these kernels */

typedef struct decode_select {
    const uint32_t *q;        /* pairs of bf16 */
    int64_t q_token, q_group; /* strides in pairs */
    const int32_t *cu_q, *cu_k, *kv_lens, *page_table;
    int64_t table_stride;
    int n_tokens, n_seqs, n_groups; /* T, B, Hkv */
    int topk, n_init, n_local;
    int n_ctas;   /* of the scan */
    int stages;   /* of its ring of pages */
    int counter;  /* of its tickets */
    int n_shared; /* at most so many pages of a CTA's part go by tickets */
    int settled;
    /* Powers of two, so that nothing is divided: column = token of the tile << groups_log2 | group.
     */
    int columns_log2, groups_log2, tokens_log2;
    float key_scale;
    unsigned *orders; /* [T, Hkv][row_blocks] score_order of the blocks that compete */
    int64_t row_blocks;
    int32_t *blocks;
    int64_t blocks_token, blocks_group;
} decode_select;

static inline int log2_ceil(int64_t x)
{
    int log2 = 0;
    while (((int64_t)1 << log2) < x) log2++;
    return log2;
}

/* All but the orders; tiles of 1 << columns_log2 columns. */
decode_select cuda_select_decode_line(const msa_context *ctx, const msa_select_args *args,
                                      int columns_log2);
/* The rows from `orders` (select_choose.cu), started early behind the kernel that writes them. */
msa_status cuda_select_choose(msa_context *ctx, const decode_select *p, int64_t n_rows);

/* A launch that may start while the kernel before it ends, and waits where it needs its results. */
typedef struct decode_launch {
    cudaLaunchAttribute attributes[2]; /* the second one is the caller's */
    cudaLaunchConfig_t config;
} decode_launch;

static inline cudaLaunchConfig_t *early_launch(decode_launch *l, const msa_context *ctx,
                                               int64_t n_ctas, int threads, size_t smem)
{
    *l = {};
    l->attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    l->attributes[0].val.programmaticStreamSerializationAllowed = 1;
    l->config.gridDim = dim3((unsigned)n_ctas);
    l->config.blockDim = dim3(threads);
    l->config.dynamicSmemBytes = smem;
    l->config.stream = cuda_stream(ctx);
    l->config.attrs = l->attributes;
    l->config.numAttrs = 1;
    return &l->config;
}

/* Inputs that an earlier kernel may just have written: read past the L1. */
__device__ __forceinline__ int load_i32(const int32_t *p)
{
    return __ldcg(p);
}

struct DecodeSequence {
    int n_tokens, first_token; /* query tokens, and where they start in the batch */
    int length;                /* S */
    int n_tiles, n_pages;      /* items, and pages each of them has to rank */
};

/* What the batch says of a sequence, as it lies in memory. */
struct RawSequence {
    int first_token, end_token, first_key, end_key;
};

__device__ __forceinline__ RawSequence load_raw(const decode_select &p, int seq)
{
    RawSequence r = {0, 0, 0, 0};
    if (seq >= p.n_seqs) return r;
    r.first_token = load_i32(p.cu_q + seq), r.end_token = load_i32(p.cu_q + seq + 1);
    if (p.kv_lens) {
        r.end_key = load_i32(p.kv_lens + seq);
    } else {
        r.first_key = load_i32(p.cu_k + seq), r.end_key = load_i32(p.cu_k + seq + 1);
    }
    return r;
}

__device__ __forceinline__ DecodeSequence make_sequence(const decode_select &p, RawSequence r)
{
    DecodeSequence s = {0, 0, 0, 0, 0};
    s.first_token = r.first_token;
    s.n_tokens = max(0, r.end_token - r.first_token);
    s.length = r.end_key - r.first_key;
    s.n_tiles = (s.n_tokens + (1 << p.tokens_log2) - 1) >> p.tokens_log2;
    int n_visible = s.length > 0 ? (s.length - 1) / DECODE_BLOCK + 1 : 0; /* (M3) */
    if (n_visible > p.topk) s.n_pages = n_visible - p.n_local - p.n_init; /* others keep all */
    return s;
}

/* 32 neighbouring sequences, one per lane of a warp, and what lies before them on the line. */
struct DecodeChunk {
    int base;
    DecodeSequence mine;
    unsigned first, end; /* this lane's pages on the line */
    int first_item;
    unsigned pages_end; /* behind the last lane */
    int items_end;
};

/* `raw` is what this lane has of sequence base + lane. */
__device__ __forceinline__ DecodeChunk make_chunk(const decode_select &p, RawSequence raw, int base,
                                                  unsigned pages_before, int items_before, int lane)
{
    DecodeChunk c;
    c.base = base;
    c.mine = make_sequence(p, raw);
    unsigned n_pages = (unsigned)c.mine.n_tiles * c.mine.n_pages, pages = n_pages;
    int items = c.mine.n_tiles;
#pragma unroll
    for (int j = 1; j < 32; j *= 2) {
        unsigned x = __shfl_up_sync(~0u, pages, j);
        int y = __shfl_up_sync(~0u, items, j);
        if (lane >= j) pages += x, items += y;
    }
    c.end = pages_before + pages;
    c.first = c.end - n_pages;
    c.first_item = items_before + items - c.mine.n_tiles;
    c.pages_end = __shfl_sync(~0u, c.end, 31);
    c.items_end = __shfl_sync(~0u, items_before + items, 31);
    return c;
}

/* Pages of a CTA; 1 where there is nothing to rank. Returns the first chunk, of `raw`. */
__device__ __forceinline__ DecodeChunk load_line(const decode_select &p, RawSequence raw, int lane,
                                                 unsigned *share, unsigned *n_pages)
{
    DecodeChunk c = make_chunk(p, raw, 0, 0, 0, lane);
    unsigned end = c.pages_end;
    for (int base = 32; base < p.n_seqs; base += 32) {
        DecodeSequence s = make_sequence(p, load_raw(p, base + lane));
        end += __reduce_add_sync(~0u, (unsigned)s.n_tiles * s.n_pages);
    }
    *n_pages = end;
    *share = max(1u, (end + p.n_ctas - 1) / p.n_ctas);
    return c;
}

/* Pages of one item that one CTA scores. */
struct DecodeSegment {
    int seq, item;
    int first_token; /* of the tile, in the batch */
    int n_tokens;    /* of the tile */
    int position;    /* of the tile's first token */
    int block;       /* first one */
    int n_pages;     /* 0: the end of the line */
    int last;        /* block that the item has to rank */
    unsigned line;   /* where its first page stands on the line */
};

/* The segment at `at` of the line; moves `at` behind it and `c` to its chunk. */
__device__ __forceinline__ DecodeSegment next_segment(const decode_select &p, DecodeChunk &c,
                                                      unsigned &at, unsigned end, int lane)
{
    DecodeSegment s = {0, 0, 0, 0, 0, 0, 0, 0, at};
    if (at >= end) return s;
    while (at >= c.pages_end) {
        if (c.base + 32 >= p.n_seqs) return s;
        RawSequence raw = load_raw(p, c.base + 32 + lane);
        c = make_chunk(p, raw, c.base + 32, c.pages_end, c.items_end, lane);
    }
    int from = __ffs(__ballot_sync(~0u, c.first <= at && at < c.end)) - 1;
    unsigned inside = at - __shfl_sync(~0u, c.first, from);
    int n_pages = __shfl_sync(~0u, c.mine.n_pages, from);
    int tile = inside < (unsigned)n_pages ? 0 : inside / n_pages, page = inside - tile * n_pages;
    int token = tile << p.tokens_log2, n_tokens = __shfl_sync(~0u, c.mine.n_tokens, from);
    s.seq = c.base + from;
    s.item = __shfl_sync(~0u, c.first_item, from) + tile;
    s.first_token = __shfl_sync(~0u, c.mine.first_token, from) + token;
    s.n_tokens = min(1 << p.tokens_log2, n_tokens - token);
    s.position = __shfl_sync(~0u, c.mine.length, from) - n_tokens + token; /* (M2) */
    s.block = p.n_init + page;
    s.last = p.n_init + n_pages - 1;
    s.n_pages = (int)min((unsigned)(n_pages - page), end - at);
    s.line = at;
    at += s.n_pages;
    return s;
}

/* Where column `column` of a segment's tile keeps its numbers; NULL: no such row. */
__device__ __forceinline__ unsigned *row_orders(const decode_select &p, const DecodeSegment &s,
                                                int column)
{
    int token = column >> p.groups_log2, group = column & ((1 << p.groups_log2) - 1);
    if (token >= s.n_tokens || group >= p.n_groups) return NULL;
    return p.orders + ((int64_t)(s.first_token + token) * p.n_groups + group) * p.row_blocks;
}

/* ---- maxima of a warp's keys --------------------------------------------------------------------
 */

struct fold_floats {
    __device__ __forceinline__ float operator()(float x, float y) const
    {
        return fmaxf(x, y);
    }
};
struct fold_ints {
    __device__ __forceinline__ int operator()(int x, int y) const
    {
        return max(x, y);
    }
};

/* The larger of what the warp's eight lanes of a column hold; number 2 i + j of a lane is of column
 * 8 i + 2 (lane % 4) + j. Returns the i of the columns whose maxima m[0] and m[1] then are: with
 * one tile of 8 columns the same in every lane, with eight tiles one for each lane of the eight,
 * since an exchange halves a lane's columns. */
template <int TILES, typename T, typename Larger>
__device__ __forceinline__ int fold_columns(T (&m)[2 * TILES], int lane, Larger larger)
{
    int tile = 0;
#pragma unroll
    for (int w = 16, n = 2 * TILES; w >= 4; w /= 2) {
        if (n > 2) {
            n /= 2;
            int upper = (lane & w) != 0;
            tile = 2 * tile + upper;
#pragma unroll
            for (int i = 0; i < TILES; i++) {
                if (i >= n) continue;
                T keep = upper ? m[i + n] : m[i], give = upper ? m[i] : m[i + n];
                m[i] = larger(keep, __shfl_xor_sync(~0u, give, w));
            }
        } else {
#pragma unroll
            for (int i = 0; i < 2; i++) m[i] = larger(m[i], __shfl_xor_sync(~0u, m[i], w));
        }
    }
    return tile;
}

#endif
