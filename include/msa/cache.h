/* The paged cache: one pool of pages holding K, V and index K of every layer, and its sequences.
 *
 * A page holds the P = Bk tokens of one block for all layers. The three lanes of a token live in the
 * same page and are appended, truncated, forked, copied and freed together: an index key can never be
 * left behind. Pages are reference counted; a page shared by a fork is read-only until copied.
 */
#ifndef MSA_CACHE_H
#define MSA_CACHE_H

#include "msa/attention.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct msa_cache msa_cache;

typedef struct msa_cache_args {
    uint32_t struct_size;
    uint32_t flags;
    int32_t n_layers;
    int32_t n_kv_heads;         /* Hkv */
    int32_t head_dim;           /* D */
    int32_t index_dim;          /* Di; 0 when no layer has an index lane */
    int32_t block_size;         /* P = Bk; 0: 128 */
    int32_t max_seqs;           /* sequences alive at once; 0: 1 */
    const uint8_t *layer_has_index; /* [n_layers]; NULL: every layer, when index_dim > 0 */
    int64_t max_tokens;             /* capacity of the pool, rounded up to pages */
    msa_dtype k_dtype, v_dtype, k_index_dtype; /* f32, bf16 or fp8_e4m3 */
    float k_scale, v_scale, k_index_scale;     /* fp8 scales; 0: 1 */
    int32_t index8; /* 1: room for an eight-bit copy of the index keys, see msa_cache_index8 */
    int32_t reserved;
    const uint8_t *layer_has_means; /* [n_layers]: room for mean keys, msa_cache_means; NULL: none */
    const uint8_t *layer_has_kv;    /* [n_layers]: K and V lanes; NULL: every layer */
} msa_cache_args;
MSA_ARGS_INIT(msa_cache_args)

/* Create a pool. Pages lie in the memory of the context's operators (memory.h); it is reserved at
 * once and, on a host backend, touched only as tokens arrive.
 *
 * Ownership *out is owned: msa_cache_destroy; ctx is retained
 * Errors    MSA_EINVAL, MSA_ENOMEM, MSA_EDEVMEM
 */
MSA_API MSA_CHECK_RESULT msa_status msa_cache_create(msa_cache **out, msa_context *ctx,
                                                     const msa_cache_args *args);
MSA_API void msa_cache_destroy(msa_cache *cache);

/* Open an empty sequence; *seq is its id in 0..max_seqs-1. MSA_EBUSY when all are in use. */
MSA_API MSA_CHECK_RESULT msa_status msa_cache_open(msa_cache *cache, int32_t *seq);

/* Free a sequence: its pages lose one reference each. */
MSA_API MSA_CHECK_RESULT msa_status msa_cache_close(msa_cache *cache, int32_t seq);

/* Make room for n_tokens more tokens of a sequence, copying a shared last page first; the length grows
 * by n_tokens. All or nothing: MSA_EBUSY when the pool has too few free pages. */
MSA_API MSA_CHECK_RESULT msa_status msa_cache_extend(msa_cache *cache, int32_t seq,
                                                     int64_t n_tokens);

/* Shorten a sequence to n_tokens, at most its length; whole pages behind it are released. */
MSA_API MSA_CHECK_RESULT msa_status msa_cache_truncate(msa_cache *cache, int32_t seq,
                                                       int64_t n_tokens);

/* Open a new sequence that shares every page of seq (copy on write). */
MSA_API MSA_CHECK_RESULT msa_status msa_cache_fork(msa_cache *cache, int32_t seq,
                                                   int32_t *new_seq);

MSA_API int64_t msa_cache_length(const msa_cache *cache, int32_t seq); /* tokens; -1 if not open */
MSA_API int64_t msa_cache_free_tokens(const msa_cache *cache);         /* in whole free pages */
MSA_API int64_t msa_cache_bytes_per_token(const msa_cache *cache);     /* all layers, all lanes */

/* A number that changes whenever the page list of an open sequence does, and that no other list of
 * this cache has or had: rows of a page table kept elsewhere are good while it stays. -1 if not open.
 */
MSA_API int64_t msa_cache_page_version(const msa_cache *cache, int32_t seq);

/* View of one layer for a batch of sequences.
 *
 * seqs      [n_seqs] sequence ids
 * table     [n_seqs * table_stride] filled with the sequences' page ids; borrowed by the view
 * kv_lens   [n_seqs] filled with the lengths; borrowed by the view
 *
 * All three are host memory. Where operators take device memory, upload table and kv_lens and point
 * the view at the copies; its tensors lie on the device already.
 *
 * Errors    MSA_EINVAL a sequence not open, table_stride below a sequence's pages
 */
MSA_API MSA_CHECK_RESULT msa_status msa_cache_view(const msa_cache *cache, int32_t layer,
                                                   const int32_t *seqs, int32_t n_seqs,
                                                   int32_t *table, int64_t table_stride,
                                                   int32_t *kv_lens, msa_kv_view *view);

/* The eight-bit copy of a layer's index keys, for msa_index_quantize and msa_select: it lies beside the
 * pages and is shared and freed with them. A page copied on write is quantised again when it is full.
 * Both tensors are absent when the cache was created without index8, or the layer has no index keys. */
MSA_API MSA_CHECK_RESULT msa_status msa_cache_index8(const msa_cache *cache, int32_t layer,
                                                     msa_index8 *index8);

/* The mean keys of a layer's pages, f32 [pages, Hkv, D], for msa_block_means and msa_moba_select: they
 * lie beside the pages and are shared and freed with them. A page copied on write is averaged again when
 * it is full. Absent where layer_has_means is not set. */
MSA_API MSA_CHECK_RESULT msa_status msa_cache_means(const msa_cache *cache, int32_t layer,
                                                    msa_tensor *means);

#ifdef __cplusplus
}
#endif
#endif
