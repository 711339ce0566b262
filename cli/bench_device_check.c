/* Checks before timing on a device: the selection by its rules for every row and by plain loops for
 * samples, attention by plain loops for samples. */
#include "bench_device.h"

#include "bench_data.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SAMPLES      2
#define LANE_NUMBERS (STAGE_BLOCK * STAGE_DIM) /* of one head in a page */

static char problem[200];

/* A new token of batch r and a head (or group) of it. */
typedef struct place {
    int64_t token, position;
    int32_t seq, head;
} place;

static place draw_place(bench_stage *s, const stage_shape *shape, int32_t n_heads)
{
    place p;
    p.token = bench_random(&s->random_state, (int64_t)shape->n_seqs * shape->q_len);
    p.seq = (int32_t)(p.token / shape->q_len);
    p.position = (int64_t)shape->kv_len - shape->q_len + p.token % shape->q_len;
    p.head = (int32_t)bench_random(&s->random_state, n_heads);
    return p;
}

/* Rows first..first+n-1 of one head of a lane, as numbers on the host: [n, STAGE_BLOCK, STAGE_DIM].
 */
static uint16_t *fetch_blocks(bench_stage *s, const void *lane, int32_t n_heads, int32_t head,
                              const int32_t *pages, int64_t n)
{
    uint16_t *rows = malloc((size_t)n * LANE_NUMBERS * sizeof(*rows));
    for (int64_t b = 0; rows && b < n; b++) {
        const uint16_t *from =
            (const uint16_t *)lane + ((int64_t)pages[b] * n_heads + head) * LANE_NUMBERS;
        if (msa_memory_download(s->ctx, rows + b * LANE_NUMBERS, from, LANE_NUMBERS * 2) !=
            MSA_OK) {
            free(rows);
            return NULL;
        }
    }
    return rows;
}

static float to_float(uint16_t x)
{
    return bench_load(&x, MSA_DTYPE_BF16, 0);
}

static double dot(const float *q, const uint16_t *k)
{
    double sum = 0;
    for (int d = 0; d < STAGE_DIM; d++) {
        uint32_t bits = (uint32_t)k[d] << 16;
        float x;
        memcpy(&x, &bits, sizeof(x));
        sum += (double)(q[d] * x);
    }
    return sum;
}

/* One row of queries, or of outputs. */
static int fetch_row(bench_stage *s, const msa_tensor *t, int64_t token, int32_t head, float *row)
{
    uint16_t numbers[STAGE_DIM];
    const uint16_t *from = (const uint16_t *)t->data + token * t->stride[0] + head * t->stride[1];
    if (msa_memory_download(s->ctx, numbers, from, sizeof(numbers)) != MSA_OK) return 0;
    for (int d = 0; d < STAGE_DIM; d++) row[d] = to_float(numbers[d]);
    return 1;
}

/* ---- selection ------------------------------------------------------------------------------- */

/* Exactly min(K, visible) ids, ascending, the local block last, then -1. */
static const char *check_rules(const stage_shape *shape, const int32_t *rows)
{
    for (int64_t i = 0; i < (int64_t)shape->n_seqs * shape->q_len * STAGE_KV_HEADS; i++) {
        int64_t token = i / STAGE_KV_HEADS % shape->q_len;
        int64_t visible = (shape->kv_len - shape->q_len + token) / STAGE_BLOCK + 1;
        int64_t n = visible < STAGE_TOPK ? visible : STAGE_TOPK;
        const int32_t *row = rows + i * STAGE_TOPK;
        int good = row[n - 1] == visible - 1 && row[0] >= 0;
        for (int64_t k = 1; k < n; k++) good &= row[k] > row[k - 1];
        for (int64_t k = n; k < STAGE_TOPK; k++) good &= row[k] == -1;
        if (good) continue;
        snprintf(problem, sizeof(problem), "check: row %lld breaks the selection rules",
                 (long long)i);
        return problem;
    }
    return NULL;
}

/* No dropped block scores above a kept one; the local block is kept whatever it scores. */
static const char *check_choice(const float *q, const uint16_t *keys, const int32_t *row,
                                int64_t local)
{
    double lowest_kept = HUGE_VAL, highest_dropped = -HUGE_VAL;
    for (int64_t b = 0, k = 0; b < local; b++) {
        double best = -HUGE_VAL;
        for (int64_t j = 0; j < STAGE_BLOCK; j++) {
            best = fmax(best, dot(q, keys + (b * STAGE_BLOCK + j) * STAGE_DIM));
        }
        if (k < STAGE_TOPK && row[k] == b) {
            k++;
            lowest_kept = fmin(lowest_kept, best);
        } else {
            highest_dropped = fmax(highest_dropped, best);
        }
    }
    if (highest_dropped <= lowest_kept + 1e-4 * fmax(1, fabs(lowest_kept))) return NULL;
    snprintf(problem, sizeof(problem), "check: a block of score %g is dropped, one of %g kept",
             highest_dropped, lowest_kept);
    return problem;
}

static const char *check_select(bench_stage *s, const stage_shape *shape, const int32_t *rows)
{
    const char *wrong = check_rules(shape, rows);
    msa_select_args args = stage_select_args(s, shape, 0, 0);
    for (int i = 0; i < SAMPLES && !wrong; i++) {
        place p = draw_place(s, shape, STAGE_KV_HEADS);
        int64_t local = p.position / STAGE_BLOCK;
        const int32_t *pages = stage_pages(s, shape, 0) + p.seq * stage_blocks(shape);
        float q[STAGE_DIM];
        uint16_t *keys = fetch_blocks(s, s->k_index, 1, 0, pages, local + 1);
        if (!keys || !fetch_row(s, &args.q_index, p.token, p.head, q)) {
            wrong = "check: the inputs cannot be read back";
        } else {
            const int32_t *row = rows + (p.token * STAGE_KV_HEADS + p.head) * STAGE_TOPK;
            wrong = check_choice(q, keys, row, local);
        }
        free(keys);
    }
    return wrong;
}

/* ---- attention ------------------------------------------------------------------------------- */

/* Softmax attention of one query over n blocks of keys; of the last only `tail` tokens. */
static void attend_directly(const float *q, const uint16_t *k, const uint16_t *v, int64_t n,
                            int64_t tail, double *out)
{
    double sum = 0, max = -HUGE_VAL;
    memset(out, 0, STAGE_DIM * sizeof(*out));
    for (int64_t j = 0; j < (n - 1) * STAGE_BLOCK + tail; j++) {
        double t = dot(q, k + j * STAGE_DIM) / sqrt(STAGE_DIM), up = t > max ? t : max;
        double factor = exp(max - up), weight = exp(t - up);
        sum = sum * factor + weight;
        for (int d = 0; d < STAGE_DIM; d++) {
            out[d] = (factor == 1 ? out[d] : out[d] * factor) +
                     weight * (double)to_float(v[j * STAGE_DIM + d]);
        }
        max = up;
    }
    for (int d = 0; d < STAGE_DIM; d++) out[d] /= sum;
}

static const char *compare(const float *out, const double *expected, const place *p)
{
    double largest = 0, worst = 0;
    for (int d = 0; d < STAGE_DIM; d++) {
        largest = fmax(largest, fabs(expected[d]));
        worst = isfinite(out[d]) ? fmax(worst, fabs((double)out[d] - expected[d])) : HUGE_VAL;
    }
    if (worst <= 2e-2 * largest) return NULL;
    snprintf(problem, sizeof(problem),
             "check: attention of token %lld, head %d is off by %g, allowed %g",
             (long long)p->token, p->head, worst, 2e-2 * largest);
    return problem;
}

/* One sample: over the blocks of its row, or (rows NULL) over all. */
static const char *check_attention(bench_stage *s, const stage_shape *shape, const int32_t *rows)
{
    place p = draw_place(s, shape, STAGE_Q_HEADS);
    int32_t group = p.head / (STAGE_Q_HEADS / STAGE_KV_HEADS), chosen[STAGE_TOPK];
    int64_t n = p.position / STAGE_BLOCK + 1;
    const int32_t *pages = stage_pages(s, shape, 0) + p.seq * stage_blocks(shape);
    if (rows) {
        const int32_t *row = rows + (p.token * STAGE_KV_HEADS + group) * STAGE_TOPK;
        for (n = 0; n < STAGE_TOPK && row[n] >= 0; n++) chosen[n] = pages[row[n]];
        pages = chosen;
    }
    msa_attend_args args = stage_attend_args(s, shape, 0);
    float q[STAGE_DIM], out[STAGE_DIM];
    double expected[STAGE_DIM];
    const char *wrong = NULL;
    uint16_t *k = fetch_blocks(s, s->k, STAGE_KV_HEADS, group, pages, n);
    uint16_t *v = fetch_blocks(s, s->v, STAGE_KV_HEADS, group, pages, n);
    if (!k || !v || !fetch_row(s, &args.q, p.token, p.head, q) ||
        !fetch_row(s, &args.out, p.token, p.head, out)) {
        wrong = "check: the inputs cannot be read back";
    } else {
        attend_directly(q, k, v, n, p.position % STAGE_BLOCK + 1, expected);
        wrong = compare(out, expected, &p);
    }
    free(k);
    free(v);
    return wrong;
}

const char *device_check(bench_stage *s, const stage_shape *shape, int32_t what)
{
    size_t n_ids = (size_t)shape->n_seqs * (size_t)shape->q_len * STAGE_KV_HEADS * STAGE_TOPK;
    int32_t *rows = malloc(n_ids * sizeof(*rows));
    const char *wrong = rows ? NULL : "out of memory";
    if (!wrong && stage_run(s, shape, 0, what) != MSA_OK) wrong = msa_last_error();
    if (!wrong && msa_context_synchronize(s->ctx) != MSA_OK) wrong = msa_last_error();
    if (!wrong && !(what & RUN_DENSE) &&
        msa_memory_download(s->ctx, rows, stage_attend_args(s, shape, 0).blocks.data,
                            n_ids * sizeof(*rows)) != MSA_OK) {
        wrong = msa_last_error();
    }
    if (!wrong && what & RUN_SELECT) wrong = check_select(s, shape, rows);
    if (!wrong && what & (RUN_ATTEND | RUN_DENSE)) {
        wrong = check_attention(s, shape, what & RUN_DENSE ? NULL : rows);
    }
    free(rows);
    return wrong;
}
