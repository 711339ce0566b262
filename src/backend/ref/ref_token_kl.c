/* The KL loss of a DSA layer's index branch and its gradient, (D6)-(D8): row by row, the gradient
 * of index keys summed in double. */
#include "backend/ref/ref_backend.h"
#include "backend/ref/ref_gradient.h"

#include <string.h>

/* One row: a token, the keys of A and, for each, the student's score and teacher's weight. */
typedef struct kl_row {
    int32_t seq;
    int64_t i, n;
    int32_t *keys;
    double *scores, *teacher;
} kl_row;

typedef struct kl_memory {
    double *dk; /* [rows of k_index, Di] */
    double *scores, *teacher;
    int32_t *keys;
} kl_memory;

size_t msa__ref_token_kl_workspace(const msa_context *ctx, const msa_token_kl_args *args)
{
    (void)ctx;
    size_t n_keys = (size_t)args->kv.k_index.shape[0], dim = (size_t)args->kv.k_index.shape[1];
    return n_keys * ((dim + 2) * sizeof(double) + sizeof(int32_t));
}

static kl_memory lay_out(const msa_token_kl_args *args, double *workspace)
{
    int64_t n_keys = args->kv.k_index.shape[0];
    double *scores = workspace + n_keys * args->kv.k_index.shape[1], *teacher = scores + n_keys;
    return (kl_memory){workspace, scores, teacher, (int32_t *)(teacher + n_keys)};
}

static ref_row index_key(const msa_token_kl_args *args, const kl_row *row, int64_t n)
{
    return ref_lane_row(&args->kv, &args->kv.k_index, row->seq, row->keys[n], 0);
}

/* <q_h, k> of index head h; the head counts where it is positive. */
static double product(const msa_token_kl_args *args, const kl_row *row, int64_t h, int64_t n)
{
    return ref_dot(ref_tensor_row(&args->q_index, row->i, h), index_key(args, row, n),
                   args->q_index.shape[2]);
}

/* (D1) times s. */
static double student_score(const msa_token_kl_args *args, const kl_row *row, int64_t n)
{
    double sum = 0;
    for (int64_t h = 0; h < args->q_index.shape[1]; h++) {
        double z = product(args, row, h, n);
        sum += (double)*ref_f32_at(&args->weights, row->i, h) * (z < 0 ? 0 : z);
    }
    return (double)args->index_scale * sum;
}

/* (D6): the mean over all heads. */
static double teacher_weight(const msa_token_kl_args *args, const kl_row *row, int64_t n)
{
    int64_t n_heads = args->q.shape[1], group = n_heads / args->kv.k.shape[1];
    double sum = 0;
    for (int64_t h = 0; h < n_heads; h++) {
        ref_row key = ref_lane_row(&args->kv, &args->kv.k, row->seq, row->keys[n], h / group);
        double t = ref_dot(ref_tensor_row(&args->q, row->i, h), key, args->q.shape[2]);
        sum += ref_weight((double)args->scale * t, (double)*ref_f32_at(&args->lse, row->i, h));
    }
    return sum / (double)n_heads;
}

/* Keys, scores and weights; returns the student's log of the sum of exponentials. */
static double look_at_row(const msa_token_kl_args *args, kl_row *row, int64_t position)
{
    const int32_t *tokens = (const int32_t *)args->tokens.data;
    double max = -HUGE_VAL, sum = 0;
    row->n = 0;
    if (args->tokens.n_dims) {
        tokens += row->i * args->tokens.stride[0];
        for (; row->n < args->tokens.shape[1] && tokens[row->n] >= 0; row->n++) {
            row->keys[row->n] = tokens[row->n];
        }
    } else {
        for (; row->n <= position; row->n++) row->keys[row->n] = (int32_t)row->n;
    }
    for (int64_t n = 0; n < row->n; n++) {
        row->scores[n] = student_score(args, row, n);
        row->teacher[n] = teacher_weight(args, row, n);
        max = row->scores[n] > max ? row->scores[n] : max;
    }
    for (int64_t n = 0; n < row->n; n++) sum += exp(row->scores[n] - max);
    return row->n ? max + log(sum) : -HUGE_VAL;
}

/* (D7), not weighted. A key without teacher's weight adds nothing. */
static void write_loss(const msa_token_kl_args *args, const kl_row *row, double lse)
{
    double sum = 0;
    for (int64_t n = 0; n < row->n; n++) {
        double p = row->teacher[n];
        if (p > 0) sum += p * (log(p) - (row->scores[n] - lse));
    }
    ((float *)args->loss.data)[row->i * args->loss.stride[0]] = (float)sum;
}

/* (D8) of one index head. */
static void differentiate_head(const msa_token_kl_args *args, const kl_row *row, double lse,
                               int64_t h, double *dk)
{
    int64_t dim = args->q_index.shape[2];
    double dq[REF_MAX_HEAD_DIM] = {0}, d_weight = 0;
    double weight = (double)*ref_f32_at(&args->weights, row->i, h);
    for (int64_t n = 0; n < row->n; n++) {
        double z = product(args, row, h, n);
        double d = (double)args->weight * (double)args->index_scale *
                   (exp(row->scores[n] - lse) - row->teacher[n]);
        if (!(z > 0)) continue;
        d_weight += d * z;
        ref_add_row(dq, d * weight, index_key(args, row, n), dim);
        ref_add_row(dk + (ref_first_key(&args->kv, row->seq) + row->keys[n]) * dim, d * weight,
                    ref_tensor_row(&args->q_index, row->i, h), dim);
    }
    if (args->dq_index.n_dims) ref_write_head(&args->dq_index, row->i, h, dq, 0);
    if (args->d_weights.n_dims) *ref_f32_at(&args->d_weights, row->i, h) = (float)d_weight;
}

msa_status msa__ref_token_kl(msa_context *ctx, const msa_token_kl_args *args, void *workspace)
{
    (void)ctx;
    const int32_t *cu = args->cu_seqlens_q;
    const msa_tensor *dk = &args->dk_index;
    int64_t n_rows = args->kv.k_index.shape[0], dim = args->kv.k_index.shape[1];
    kl_memory memory = lay_out(args, workspace);
    memset(memory.dk, 0, (size_t)(n_rows * dim) * sizeof(double));
    for (int32_t s = 0; s < args->kv.n_seqs; s++) {
        int64_t first_position = msa__kv_length(&args->kv, s) - (cu[s + 1] - cu[s]); /* (M2) */
        for (int64_t i = cu[s]; i < cu[s + 1]; i++) {
            kl_row row = {s, i, 0, memory.keys, memory.scores, memory.teacher};
            double lse = look_at_row(args, &row, first_position + i - cu[s]);
            if (args->loss.n_dims) write_loss(args, &row, lse);
            for (int64_t h = 0; h < args->q_index.shape[1]; h++) {
                differentiate_head(args, &row, lse, h, memory.dk);
            }
        }
    }
    for (int64_t j = 0; j < n_rows && dk->n_dims; j++) {
        ref_write_row(dk, j * dk->stride[0], memory.dk + j * dim, dim, 0);
    }
    return MSA_OK;
}
