/* An attention problem: random inputs as plain doubles, and the same numbers stored as tensors in
 * the dtypes and layout of a case, between poison.
 *
 * The doubles are the truth: problem_store rounds them to the dtypes, writes the tensors, and puts
 * the rounded values back, so that an oracle sees exactly what the operators see.
 */
#ifndef MSA_TESTS_PROBLEM_H
#define MSA_TESTS_PROBLEM_H

#include "msa/attention.h"

typedef enum problem_fill {
    FILL_NORMAL, /* nearly normal, variance one */
    FILL_TIES,   /* small whole numbers: exact in every dtype, many equal scores */
    FILL_ZERO
} problem_fill;

typedef struct problem_spec {
    const char *name;
    int32_t n_seqs, n_lens;        /* sequence s has lengths [s % n_lens] */
    int32_t q_lens[5], kv_lens[5]; /* T and S */
    int32_t n_q_heads, n_kv_heads; /* Hq, Hkv */
    int32_t head_dim, index_dim;   /* D, Di */
    int32_t block_size, topk;      /* Bk, K */
    int32_t n_init, n_local;
    msa_dtype q_dtype, cache_dtype; /* of every lane, unless mixed */
    int32_t paged;                  /* else packed */
    int32_t oversized;              /* strides larger than the rows */
    problem_fill fill;
    int32_t mixed; /* v in fp8 and index keys in f32, whatever k's cache_dtype is */
} problem_spec;

typedef struct problem {
    problem_spec spec;
    int64_t n_tokens, n_keys; /* over the batch */
    int32_t n_blocks;         /* N of the longest sequence */
    int32_t *cu_q, *cu_k, *kv_lens, *page_table;
    int32_t *seq_of;     /* [n_tokens] sequence, */
    int32_t *position;   /* and position p_i of each token */
    double *q, *q_index; /* [n_tokens, Hq, D], [n_tokens, Hkv, Di] */
    double *k, *v,
        *k_index; /* [n_keys, Hkv, D] twice, [n_keys, Di]; sequence s starts at cu_k[s] */
    msa_tensor q_tensor, q_index_tensor;
    msa_kv_view kv;
    void *memory[16]; /* everything above */
    int32_t n_memory;
} problem;

/* Inputs are drawn from (seed, tensor, index); storing is included. */
problem *problem_create(const problem_spec *spec, uint64_t seed);
void problem_store(problem *p);
void problem_free(problem *p);

/* Tokens first..first+n-1 of one sequence as a batch of their own, S ending at the last of them:
 * what a caller that works in chunks would pass. Borrows everything from the problem. */
typedef struct problem_slice {
    problem p;
    int32_t cu_q[2], cu_k[2], kv_len;
} problem_slice;
void problem_slice_init(problem_slice *slice, const problem *p, int32_t seq, int32_t first,
                        int32_t n);

/* Rows of the truth. */
double *problem_q(const problem *p, int64_t token, int32_t head);
double *problem_q_index(const problem *p, int64_t token, int32_t group);
double *problem_k(const problem *p, int32_t seq, int64_t key, int32_t group);
double *problem_v(const problem *p, int32_t seq, int64_t key, int32_t group);
double *problem_k_index(const problem *p, int32_t seq, int64_t key);

/* A tensor of poison with `pad` elements behind every row; the memory is freed with free(data). */
msa_tensor poisoned_tensor(msa_dtype dtype, int32_t n_dims, int64_t d0, int64_t d1, int64_t d2,
                           int64_t d3, int64_t pad);

/* Values of a [d0, d1, d2] tensor as f32 (or its int32 as they are), contiguous; the poison behind
 * every row must be whole. */
void read_tensor(const msa_tensor *t, void *values);

#endif
