/* Checks of caller arguments, written once: each names operator, argument, value and rule.
 *
 * An operator's check function runs twice: while planning, when data pointers are ignored, and
 * while running, when they must be there. Every helper takes the msa__check that says which.
 */
#ifndef MSA_OPS_CHECK_H
#define MSA_OPS_CHECK_H

#include "base/error.h"
#include "msa/attention.h"

/* Values of msa_plan.op. */
#define MSA__OP_MAP(X)                                                                             \
    X(SELECT, 1, "select")                                                                         \
    X(ATTEND, 2, "attend")                                                                         \
    X(DENSE_ATTEND, 3, "dense_attend")                                                             \
    X(LINEAR, 4, "linear")                                                                         \
    X(MOE, 5, "moe")                                                                               \
    X(REVERSE_INDEX, 6, "reverse_index")                                                           \
    X(ATTEND_BACKWARD, 7, "attend_backward")                                                       \
    X(DENSE_ATTEND_BACKWARD, 8, "dense_attend_backward")                                           \
    X(INDEX_KL, 9, "index_kl")                                                                     \
    X(BLOCK_MASS, 10, "block_mass")                                                                \
    X(EMBED_BACKWARD, 11, "embed_backward")                                                        \
    X(RMSNORM_BACKWARD, 12, "rmsnorm_backward")                                                    \
    X(LINEAR_BACKWARD, 13, "linear_backward")                                                      \
    X(ROUTER_BACKWARD, 14, "router_backward")                                                      \
    X(MOE_BACKWARD, 15, "moe_backward")                                                            \
    X(SUM_SQUARES, 16, "sum_squares")                                                              \
    X(MOBA_SELECT, 31, "moba_select")                                                              \
    X(LIGHTNING, 32, "lightning")                                                                  \
    X(LIGHTNING_BACKWARD, 33, "lightning_backward")                                                \
    X(TOKEN_SELECT, 34, "token_select")                                                            \
    X(TOKEN_ATTEND, 35, "token_attend")                                                            \
    X(LAYERNORM_BACKWARD, 36, "layernorm_backward")                                                \
    X(TOKEN_ATTEND_BACKWARD, 37, "token_attend_backward")                                          \
    X(TOKEN_KL, 38, "token_kl")                                                                    \
    X(SELECT_ATTEND, 39, "select_attend")

enum {
#define MSA__OP_CONSTANT(name, value, text) MSA__OP_##name = (value),
    MSA__OP_MAP(MSA__OP_CONSTANT)
#undef MSA__OP_CONSTANT
};

typedef struct msa__check {
    const char *op;
    int32_t running; /* 0: planning, data pointers and array contents are ignored */
    int32_t device;  /* 1: arrays lie in device memory, their contents cannot be looked at */
} msa__check;

/* Contents of the caller's arrays can be checked. */
static inline int msa__can_read(const msa__check *at)
{
    return at->running && !at->device;
}

/* Sets of dtypes a tensor may have: bit `dtype`, by the values of MSA_DTYPE_MAP. */
#define MSA__DTYPES_F32    0x01u
#define MSA__DTYPES_FLOAT  0x07u /* f32, bf16, f16: activations */
#define MSA__DTYPES_CACHE  0x0bu /* f32, bf16, fp8_e4m3 */
#define MSA__DTYPES_WEIGHT 0x0fu
#define MSA__DTYPES_U8     0x10u
#define MSA__DTYPES_I32    0x20u
#define MSA__DTYPES_I8     0x80u

/* Start of every operator: the context is there, and *ours holds the caller's arguments. */
msa_status msa__check_call(msa__check *at, const msa_context *ctx, void *ours, size_t our_size,
                           const void *args);

/* An optional tensor that the caller left out: no data, and while planning no shape either. */
static inline int msa__is_absent(const msa__check *at, const msa_tensor *t)
{
    return !t->data && (at->running || t->n_dims == 0);
}

/* Dimensions, dtype, extents >= 0, contiguous last dimension, positive strides, no address
 * overflow; while running: data present (unless empty) and aligned to its elements. */
msa_status msa__check_tensor(const msa__check *at, const char *name, const msa_tensor *t,
                             int32_t n_dims, uint32_t dtypes);

/* The same, and no two elements share an address. */
msa_status msa__check_output(const msa__check *at, const char *name, const msa_tensor *t,
                             int32_t n_dims, uint32_t dtypes);

/* shape[dim] == expected; `meaning` tells where the number comes from, as in "q's T". */
msa_status msa__check_dim(const msa__check *at, const char *name, const msa_tensor *t, int32_t dim,
                          int64_t expected, const char *meaning);

/* low <= value <= high */
msa_status msa__check_range(const msa__check *at, const char *name, int64_t value, int64_t low,
                            int64_t high);

/* A head or index dimension: a multiple of 16 in 16..512. */
msa_status msa__check_head_dim(const msa__check *at, const char *name, int64_t dim);

/* Bk: a power of two in 16..256. */
msa_status msa__check_block_size(const msa__check *at, int32_t block_size);

/* Finite and positive. */
msa_status msa__check_scale(const msa__check *at, const char *name, float scale);

/* Scale of a cache lane: 0 becomes 1; an fp8 lane's is finite and positive, another lane has none,
 * so that none is silently ignored. */
msa_status msa__complete_lane_scale(const msa__check *at, const char *name, msa_dtype dtype,
                                    float *scale);

/* While running: a plain array that must be there and aligned to its elements. */
msa_status msa__check_array(const msa__check *at, const char *name, const void *array,
                            size_t element_bytes);

/* cu [n_seqs + 1] starts at 0, never decreases and ends at `end` (exact) or at most there. */
msa_status msa__check_offsets(const msa__check *at, const char *name, const int32_t *cu,
                              int32_t n_seqs, int64_t end, int32_t exact);

/* The plan a caller hands to a plan call; then fill it. */
msa_status msa__check_plan(const msa__check *at, const msa_plan *plan);
void msa__fill_plan(msa_plan *plan, uint32_t op, size_t workspace_bytes);

/* Plan and workspace of a run call that needs needed_bytes for its arguments. */
msa_status msa__check_workspace(const msa__check *at, const msa_plan *plan, uint32_t op,
                                size_t needed_bytes, const void *workspace, size_t workspace_bytes);

#endif
