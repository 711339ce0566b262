/* Selection through the eight-bit copy as the equations say it: bound every block score, score
 * again only the blocks whose rank the bounds leave open, (Q3)-(Q5). */
#include "backend/ref/ref_select.h"
#include "ops/index8.h"

#include <math.h>

#define MAX_DIM 512

/* A query row, rounded to whole numbers times a scale. */
typedef struct query8 {
    int32_t n[MAX_DIM];
    double scale;
    double norm, error; /* |q| and |q - scale n|; infinite when q is not finite or too large */
} query8;

static void quantize_query(query8 *q8, ref_row q, int64_t dim)
{
    double max = 0, norm = 0, error = 0;
    for (int64_t d = 0; d < dim; d++) {
        double x = ref_at(q, d);
        max = fabs(x) > max ? fabs(x) : max;
        norm += x * x;
    }
    int finite = norm < MSA__INDEX8_MAX_NORM * MSA__INDEX8_MAX_NORM; /* not NaN either */
    float scale = finite ? msa__index8_scale(max) : 1;
    q8->scale = (double)scale;
    for (int64_t d = 0; d < dim; d++) {
        q8->n[d] = finite ? msa__index8_round(ref_at(q, d), scale) : 0;
        double e = ref_at(q, d) - q8->scale * q8->n[d];
        error += e * e;
    }
    q8->norm = finite ? fmax(sqrt(norm), MSA__INDEX8_MIN_NORM) : HUGE_VAL;
    q8->error = finite ? sqrt(error) : HUGE_VAL;
}

/* (Q3), (Q4): the score of a full block is within *bound of the returned number. */
static double scan_block(const msa_select_args *args, const query8 *q, int32_t seq, int64_t block,
                         double *bound)
{
    const msa_tensor *keys = &args->index8.keys, *bounds = &args->index8.bounds;
    int64_t dim = args->q_index.shape[2];
    int64_t page = args->kv.page_table[seq * args->kv.page_table_stride + block];
    const float *of_page = (const float *)bounds->data + page * bounds->stride[0];
    int64_t best = INT64_MIN;
    for (int64_t j = 0; j < args->block_size; j++) {
        const int8_t *key =
            (const int8_t *)keys->data + page * keys->stride[0] + j * keys->stride[1];
        int64_t sum = 0;
        for (int64_t d = 0; d < dim; d++) sum += (int64_t)q->n[d] * key[d];
        best = sum > best ? sum : best;
    }
    double error = (double)of_page[1], norm = (double)of_page[2];
    *bound = q->norm * error + q->error * norm +
             (double)dim * MSA__INDEX8_ROUNDING * q->norm * (norm + error);
    return q->scale * (double)of_page[0] * (double)best;
}

/* K-th best lower bound of the candidate blocks first..end-1; -inf when there are fewer. (Q5) */
static double lowest_kept(const msa_select_args *args, const query8 *q, int32_t seq, int64_t first,
                          int64_t end, int32_t n_slots)
{
    double best[REF_MAX_TOPK], bound; /* descending */
    int32_t n = 0;
    for (int64_t b = first; b < end; b++) {
        double score = scan_block(args, q, seq, b, &bound), lower = score - bound;
        if (!(lower > -HUGE_VAL)) continue; /* infinite bound */
        int32_t at = n < n_slots ? n++ : n_slots;
        for (; at > 0 && best[at - 1] < lower; at--) {
            if (at < n_slots) best[at] = best[at - 1];
        }
        if (at < n_slots) best[at] = lower;
    }
    return n < n_slots ? -HUGE_VAL : best[n_slots - 1];
}

void ref_offer_open(const msa_select_args *args, ref_row row, int64_t i, int64_t r, int32_t seq,
                    ref_topk *top)
{
    query8 q;
    quantize_query(&q, row, args->q_index.shape[2]);
    int64_t first = args->n_init, end = top->n_visible - args->n_local;
    int32_t n_slots = args->topk - args->n_init - args->n_local, n_rescored = 0;
    if (n_slots > 0) {
        double cut = lowest_kept(args, &q, seq, first, end, n_slots), bound;
        for (int64_t b = first; b < end; b++) {
            double upper = scan_block(args, &q, seq, b, &bound) + bound;
            if (upper < cut) continue; /* K better ones are certain; NaN stays open */
            int64_t last = (b + 1) * args->block_size - 1;
            ref_topk_offer(top, b, ref_pool_block(args, row, seq, b, last));
            n_rescored++;
        }
    }
    if (args->n_rescored.data) *ref_i32_at(&args->n_rescored, i, r) = n_rescored;
}
