/* The KL loss of the index branch and its gradient, (M14)-(M17): rows of the loss and dQ query by
 * query, dK key by key. */
#include "backend/ref/ref_backend.h"
#include "backend/ref/ref_gradient.h"
#include "ops/reverse_index.h"

/* One row (i, r): a query token and a group. */
typedef struct kl_row {
    int32_t seq;
    int64_t i, r, position;
    double index_lse; /* L' */
} kl_row;

static double *index_lse_at(const msa_index_kl_args *args, void *workspace, int64_t i, int64_t r)
{
    return (double *)workspace + i * args->q_index.shape[1] + r;
}

/* L' of every row. */
size_t msa__ref_index_kl_workspace(const msa_context *ctx, const msa_index_kl_args *args)
{
    (void)ctx;
    return (size_t)(args->q_index.shape[0] * args->q_index.shape[1]) * sizeof(double);
}

static double student_score(const msa_index_kl_args *args, const kl_row *row, int64_t j)
{
    ref_row key = ref_lane_row(&args->kv, &args->kv.k_index, row->seq, j, 0);
    ref_row q = ref_tensor_row(&args->q_index, row->i, row->r);
    return (double)args->index_scale * ref_dot(q, key, args->q_index.shape[2]);
}

/* (M15): Pbar of key j. */
static double teacher_weight(const msa_index_kl_args *args, const kl_row *row, int64_t j)
{
    int64_t group = args->q.shape[1] / args->q_index.shape[1];
    ref_row key = ref_lane_row(&args->kv, &args->kv.k, row->seq, j, row->r);
    double sum = 0;
    for (int64_t h = row->r * group; h < (row->r + 1) * group; h++) {
        ref_row q = ref_tensor_row(&args->q, row->i, h);
        double t = (double)args->scale * ref_dot(q, key, args->q.shape[2]);
        sum += ref_weight(t, (double)*ref_f32_at(&args->lse, row->i, h));
    }
    return sum / (double)group;
}

/* (M17): w s (Pidx - Pbar). */
static double difference(const msa_index_kl_args *args, const kl_row *row, int64_t j)
{
    double student = ref_weight(student_score(args, row, j), row->index_lse);
    return (double)args->weight * (double)args->index_scale *
           (student - teacher_weight(args, row, j));
}

/* The next key of A after j (-1: the first); past the position at the end. */
static int64_t next_key(const msa_index_kl_args *args, const kl_row *row, int64_t j)
{
    if (args->blocks.n_dims == 0) return j + 1;
    const int32_t *blocks = ref_i32_at(&args->blocks, row->i, row->r);
    int64_t next = j + 1, block = next / args->block_size;
    for (int64_t k = 0; k < args->blocks.shape[2] && blocks[k] >= 0; k++) {
        if (blocks[k] == block) return next;
        if (blocks[k] > block) return (int64_t)blocks[k] * args->block_size;
    }
    return row->position + 1;
}

static double find_index_lse(const msa_index_kl_args *args, const kl_row *row)
{
    double max = -HUGE_VAL, sum = 0;
    if (args->index_lse.n_dims) return (double)*ref_f32_at(&args->index_lse, row->i, row->r);
    for (int64_t j = next_key(args, row, -1); j <= row->position; j = next_key(args, row, j)) {
        double s = student_score(args, row, j);
        max = s > max ? s : max;
    }
    if (max == -HUGE_VAL) return max;
    for (int64_t j = next_key(args, row, -1); j <= row->position; j = next_key(args, row, j)) {
        sum += exp(student_score(args, row, j) - max);
    }
    return max + log(sum);
}

/* (M16), not weighted. A key without teacher's weight adds nothing. */
static void write_loss(const msa_index_kl_args *args, const kl_row *row)
{
    double sum = 0;
    for (int64_t j = next_key(args, row, -1); j <= row->position; j = next_key(args, row, j)) {
        double p = teacher_weight(args, row, j);
        if (p > 0) sum += p * (log(p) - (student_score(args, row, j) - row->index_lse));
    }
    *ref_f32_at(&args->loss, row->i, row->r) = (float)sum;
}

static void query_gradient(const msa_index_kl_args *args, const kl_row *row)
{
    double dq[REF_MAX_HEAD_DIM] = {0};
    for (int64_t j = next_key(args, row, -1); j <= row->position; j = next_key(args, row, j)) {
        ref_row key = ref_lane_row(&args->kv, &args->kv.k_index, row->seq, j, 0);
        ref_add_row(dq, difference(args, row, j), key, args->q_index.shape[2]);
    }
    ref_write_head(&args->dq_index, row->i, row->r, dq, 0);
}

/* The rows of a sequence. */
typedef struct kl_seq {
    int32_t seq;
    int64_t first_query, end_query, first_position, n_keys;
    int64_t number; /* of block 0 */
} kl_seq;

static kl_row row_at(const msa_index_kl_args *args, const kl_seq *s, int64_t i, int64_t r,
                     void *workspace)
{
    kl_row row = {s->seq, i, r, s->first_position + i - s->first_query, 0};
    row.index_lse = *index_lse_at(args, workspace, i, r);
    return row;
}

static void key_gradient(const msa_index_kl_args *args, const kl_seq *s, int64_t j, void *workspace)
{
    double dk[REF_MAX_HEAD_DIM] = {0};
    int64_t dim = args->q_index.shape[2];
    for (int64_t r = 0; r < args->q_index.shape[1]; r++) {
        msa__block_queries queries = {NULL, s->end_query - s->first_query}; /* dense: all of them */
        if (args->blocks.n_dims) {
            queries = msa__queries_of(&args->index, r, s->number + j / args->block_size);
        }
        for (int64_t e = 0; e < queries.n; e++) {
            int64_t i = queries.rows ? queries.rows[e] : s->first_query + e;
            kl_row row = row_at(args, s, i, r, workspace);
            if (j > row.position) continue;
            ref_add_row(dk, difference(args, &row, j), ref_tensor_row(&args->q_index, i, r), dim);
        }
    }
    int64_t at = ref_first_key(&args->kv, s->seq) + j;
    ref_write_row(&args->dk_index, at * args->dk_index.stride[0], dk, dim, 0);
}

static void work_on_sequence(const msa_index_kl_args *args, const kl_seq *s, void *workspace)
{
    for (int64_t i = s->first_query; i < s->end_query; i++) {
        for (int64_t r = 0; r < args->q_index.shape[1]; r++) {
            kl_row row = {s->seq, i, r, s->first_position + i - s->first_query, 0};
            row.index_lse = find_index_lse(args, &row);
            *index_lse_at(args, workspace, i, r) = row.index_lse;
            if (args->loss.n_dims) write_loss(args, &row);
            if (args->dq_index.n_dims) query_gradient(args, &row);
        }
    }
    for (int64_t j = 0; j < s->n_keys && args->dk_index.data; j++) {
        key_gradient(args, s, j, workspace);
    }
}

msa_status msa__ref_index_kl(msa_context *ctx, const msa_index_kl_args *args, void *workspace)
{
    (void)ctx;
    const int32_t *cu = args->cu_seqlens_q;
    int64_t number = 0;
    if (args->dk_index.n_dims) ref_clear_rows(&args->dk_index);
    for (int32_t s = 0; s < args->kv.n_seqs; s++) {
        int64_t n_keys = msa__kv_length(&args->kv, s);
        kl_seq seq = {s, cu[s], cu[s + 1], n_keys - (cu[s + 1] - cu[s]), n_keys, number};
        work_on_sequence(args, &seq, workspace);
        number += msa__n_blocks(&args->kv, s, args->block_size);
    }
    return MSA_OK;
}
