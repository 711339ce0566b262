/* Sigmoid router (L6), the reference: scores of one expert after the other, inserted into the best
 * k. */
#include "backend/ref/ref_backend.h"
#include "base/numeric.h"

#include <math.h>

static float expert_score(const msa_router_args *args, int64_t token, int64_t expert)
{
    const msa_tensor *x = &args->x, *weight = &args->weight;
    double logit = 0;
    for (int64_t i = 0; i < x->shape[1]; i++) {
        logit += (double)load_f32(x->data, x->dtype, token * x->stride[0] + i) *
                 (double)load_f32(weight->data, weight->dtype, expert * weight->stride[0] + i);
    }
    return (float)(1 / (1 + exp(-logit)));
}

static float rank_of(const msa_router_args *args, float score, int64_t expert)
{
    const float *bias = args->bias.data;
    return bias ? score + bias[expert] : score;
}

/* Strictly better: equal ranks keep the expert that came first, the lower id. */
static int ranks_above(float a, float b)
{
    return a > b || (isnan(b) && !isnan(a));
}

msa_status msa__ref_router(msa_context *ctx, const msa_router_args *args)
{
    (void)ctx;
    int32_t topk = args->topk;
    for (int64_t t = 0; t < args->x.shape[0]; t++) {
        int32_t *ids = args->ids + t * topk;
        float *scores = args->weights + t * topk;
        for (int32_t expert = 0; expert < args->weight.shape[0]; expert++) {
            float score = expert_score(args, t, expert);
            float rank = rank_of(args, score, expert);
            int32_t place = expert < topk ? expert : topk; /* worst place still free, or none */
            while (place > 0 &&
                   ranks_above(rank, rank_of(args, scores[place - 1], ids[place - 1]))) {
                if (place < topk) {
                    ids[place] = ids[place - 1];
                    scores[place] = scores[place - 1];
                }
                place--;
            }
            if (place < topk) {
                ids[place] = expert;
                scores[place] = score;
            }
        }
        double sum = 0;
        for (int32_t j = 0; j < topk; j++) sum += (double)scores[j];
        for (int32_t j = 0; j < topk; j++) {
            scores[j] = (float)((double)args->scaling * (double)scores[j] / sum);
        }
    }
    return MSA_OK;
}
