/* See bench_check.h. The tolerances are those of bf16 inputs and weights; f32 is held to 1e-4. */
#include "bench_check.h"

#include "bench_data.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SAMPLES 3

static char problem[160];

/* A token of the batch: its sequence and position. */
typedef struct {
    int64_t token, position;
    int32_t seq;
} place;

static place place_of(const int32_t *cu, const int32_t *kv_lens, int64_t token)
{
    place p = {token, 0, 0};
    while (cu[p.seq + 1] <= token) p.seq++;
    p.position = kv_lens[p.seq] - cu[p.seq + 1] + token;
    return p;
}

/* Index of element 0 of a key's row in a paged lane; head is 0 for index keys. */
static int64_t key_offset(const msa_kv_view *kv, const msa_tensor *lane, int32_t seq, int64_t key,
                          int64_t head, int32_t block_size)
{
    int64_t page = kv->page_table[seq * kv->page_table_stride + key / block_size];
    int64_t slot = key % block_size;
    if (lane->n_dims == 3) return page * lane->stride[0] + slot * lane->stride[1];
    return page * lane->stride[0] + head * lane->stride[1] + slot * lane->stride[2];
}

static void load_row(const msa_tensor *t, int64_t offset, int64_t n, float *row)
{
    for (int64_t i = 0; i < n; i++) row[i] = bench_load(t->data, t->dtype, offset + i);
}

static double dot_key(const msa_tensor *lane, int64_t offset, const float *q, int64_t n)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++) {
        sum += (double)q[i] * (double)bench_load(lane->data, lane->dtype, offset + i);
    }
    return sum;
}

static const int32_t *row_of(const msa_tensor *blocks, int64_t token, int64_t head)
{
    return (const int32_t *)blocks->data + token * blocks->stride[0] + head * blocks->stride[1];
}

/* (I13): exactly min(K, visible) ids, ascending, the local block last, then -1. */
static const char *check_rows(const msa_select_args *a)
{
    for (int64_t t = 0; t < a->q_index.shape[0]; t++) {
        place p = place_of(a->cu_seqlens_q, a->kv.kv_lens, t);
        int64_t visible = p.position / a->block_size + 1;
        int64_t n = visible < a->topk ? visible : a->topk;
        for (int64_t h = 0; h < a->q_index.shape[1]; h++) {
            const int32_t *row = row_of(&a->blocks, t, h);
            int good = row[n - 1] == visible - 1 && row[0] >= 0;
            for (int64_t k = 1; k < n; k++) good &= row[k] > row[k - 1];
            for (int64_t k = n; k < a->topk; k++) good &= row[k] == -1;
            if (good) continue;
            snprintf(problem, sizeof(problem),
                     "check: row of token %lld, group %lld breaks the selection rules",
                     (long long)t, (long long)h);
            return problem;
        }
    }
    return NULL;
}

/* No dropped block scores clearly above a kept one; the forced local block does not count. */
static const char *check_choice(const msa_select_args *a, place p, int64_t head)
{
    int64_t dim = a->q_index.shape[2], local = p.position / a->block_size;
    const int32_t *row = row_of(&a->blocks, p.token, head);
    float q[512];
    double lowest_kept = HUGE_VAL, highest_dropped = -HUGE_VAL;
    load_row(&a->q_index, p.token * a->q_index.stride[0] + head * a->q_index.stride[1], dim, q);
    for (int64_t b = 0, k = 0; b < local; b++) {
        double best = -HUGE_VAL;
        for (int64_t j = b * a->block_size; j < (b + 1) * a->block_size; j++) {
            int64_t offset = key_offset(&a->kv, &a->kv.k_index, p.seq, j, 0, a->block_size);
            double z = dot_key(&a->kv.k_index, offset, q, dim);
            if (z > best) best = z;
        }
        if (k < a->topk && row[k] == b) {
            k++;
            if (best < lowest_kept) lowest_kept = best;
        } else if (best > highest_dropped) {
            highest_dropped = best;
        }
    }
    if (highest_dropped <= lowest_kept + 1e-4 * fmax(1, fabs(lowest_kept))) return NULL;
    snprintf(problem, sizeof(problem),
             "check: token %lld, group %lld drops a block of score %g and keeps one of %g",
             (long long)p.token, (long long)head, highest_dropped, lowest_kept);
    return problem;
}

/* Softmax attention of one head over the keys of `row` (NULL: all visible ones), in double. */
static void attend_directly(const msa_tensor *queries, const msa_kv_view *kv, int32_t block_size,
                            place p, int64_t head, const int32_t *row, int64_t topk, double *out)
{
    int64_t dim = queries->shape[2], kv_head = head / (queries->shape[1] / kv->k.shape[1]);
    double sum = 0, max = -HUGE_VAL, scale = 1 / sqrt((double)dim);
    float q[512];
    load_row(queries, p.token * queries->stride[0] + head * queries->stride[1], dim, q);
    memset(out, 0, (size_t)dim * sizeof(*out));
    for (int64_t j = 0, k = 0; j <= p.position; j++) {
        if (row) {
            while (k < topk && row[k] >= 0 && row[k] < j / block_size) k++;
            if (k == topk || row[k] != j / block_size) continue;
        }
        double t =
            scale * dot_key(&kv->k, key_offset(kv, &kv->k, p.seq, j, kv_head, block_size), q, dim);
        double up = t > max ? t : max, factor = exp(max - up), weight = exp(t - up);
        int64_t v = key_offset(kv, &kv->v, p.seq, j, kv_head, block_size);
        sum = sum * factor + weight;
        for (int64_t d = 0; d < dim; d++) {
            out[d] = out[d] * factor + weight * (double)bench_load(kv->v.data, kv->v.dtype, v + d);
        }
        max = up;
    }
    for (int64_t d = 0; d < dim; d++) out[d] /= sum;
}

static const char *compare(const char *op, const msa_tensor *result, place p, int64_t head,
                           const double *expected)
{
    int64_t dim = result->shape[2], first = p.token * result->stride[0] + head * result->stride[1];
    double largest = 0, worst = 0;
    for (int64_t d = 0; d < dim; d++) {
        double x = (double)bench_load(result->data, result->dtype, first + d);
        largest = fmax(largest, fabs(expected[d]));
        worst = isfinite(x) ? fmax(worst, fabs(x - expected[d])) : HUGE_VAL;
    }
    double allowed = largest * (result->dtype == MSA_DTYPE_F32 ? 1e-4 : 2e-2);
    if (worst <= allowed) return NULL;
    snprintf(problem, sizeof(problem),
             "check: %s of token %lld, head %lld is off by %g, allowed %g", op, (long long)p.token,
             (long long)head, worst, allowed);
    return problem;
}

const char *bench_check(const msa_dense_attend_args *dense, const msa_select_args *select,
                        const msa_attend_args *attend, uint64_t *random_state)
{
    double expected[512];
    int64_t n_heads = attend->q.shape[1], group = n_heads / select->q_index.shape[1];
    const char *wrong = check_rows(select);
    for (int i = 0; i < SAMPLES && !wrong; i++) {
        place p = place_of(select->cu_seqlens_q, select->kv.kv_lens,
                           bench_random(random_state, attend->q.shape[0]));
        int64_t head = bench_random(random_state, n_heads);
        const int32_t *row = row_of(&select->blocks, p.token, head / group);
        wrong = check_choice(select, p, head / group);
        if (wrong) break;
        attend_directly(&attend->q, &attend->kv, attend->block_size, p, head, row, select->topk,
                        expected);
        wrong = compare("attend", &attend->out, p, head, expected);
        if (wrong) break;
        attend_directly(&dense->q, &dense->kv, dense->block_size, p, head, NULL, 0, expected);
        wrong = compare("dense attend", &dense->out, p, head, expected);
    }
    return wrong;
}
