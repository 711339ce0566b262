/* Cases of `msa bench attention`: one line of JSON each, or the default sweep. */
#ifndef CLI_BENCH_CASE_H
#define CLI_BENCH_CASE_H

#include "msa/tensor.h"

#define BENCH_MAX_SEQS 64

typedef struct bench_case {
    char name[64];
    int32_t is_prefill; /* "prefill" or "decode": which ceiling counts */
    int32_t n_seqs;
    int32_t q_lens[BENCH_MAX_SEQS], kv_lens[BENCH_MAX_SEQS];
    int32_t n_q_heads, n_kv_heads, head_dim, index_dim, block_size, topk;
    msa_dtype dtype; /* of the caches; queries are bf16 where it is fp8_e4m3 */
} bench_case;

/* Read one line. Returns NULL, or what is wrong with it (static or in problem). */
const char *bench_case_parse(bench_case *c, const char *line, char *problem, size_t problem_bytes);

/* The i-th case of the default sweep up to max_context tokens; 0 past the end. */
int bench_case_default(int32_t i, int64_t max_context, bench_case *c);

/* Sums over sequences: query tokens, keys, and (query, visible key) pairs. */
int64_t bench_case_tokens(const bench_case *c);
int64_t bench_case_keys(const bench_case *c);
double bench_case_pairs(const bench_case *c);

#endif
