/* Gradient of the router (G6), the reference: one token after the other. */
#include "backend/ref/ref_backend.h"
#include "base/numeric.h"

#include <math.h>

/* Gradients of the logits of one token's experts. */
enum { TOPK_MAX = 64 };

size_t msa__ref_router_backward_workspace(const msa_context *ctx,
                                          const msa_router_backward_args *args)
{
    (void)ctx;
    (void)args;
    return 0;
}

static double value_at(const msa_tensor *t, int64_t i, int64_t j)
{
    return (double)load_f32(t->data, t->dtype, i * t->stride[0] + j);
}

static void logit_gradients(const msa_router_backward_args *args, int64_t token,
                            double d_logits[TOPK_MAX])
{
    const int32_t *ids = args->ids + token * args->topk;
    const float *d_weights = args->d_weights + token * args->topk;
    double score[TOPK_MAX], total = 0, mean = 0;
    for (int32_t j = 0; j < args->topk; j++) {
        double logit = 0;
        for (int64_t i = 0; i < args->x.shape[1]; i++) {
            logit += value_at(&args->x, token, i) * value_at(&args->weight, ids[j], i);
        }
        score[j] = 1 / (1 + exp(-logit));
        total += score[j];
    }
    for (int32_t j = 0; j < args->topk; j++) mean += (double)d_weights[j] * (score[j] / total);
    for (int32_t j = 0; j < args->topk; j++) {
        double d_score = (double)args->scaling / total * ((double)d_weights[j] - mean);
        d_logits[j] = d_score * score[j] * (1 - score[j]);
    }
}

msa_status msa__ref_router_backward(msa_context *ctx, const msa_router_backward_args *args,
                                    void *workspace)
{
    (void)ctx;
    (void)workspace;
    const msa_tensor *x = &args->x, *dx = &args->dx, *d_weight = &args->d_weight;
    double d_logits[TOPK_MAX];
    for (int64_t t = 0; t < x->shape[0]; t++) {
        const int32_t *ids = args->ids + t * args->topk;
        logit_gradients(args, t, d_logits);
        for (int64_t i = 0; dx->n_dims && i < x->shape[1]; i++) {
            double sum = args->accumulate ? value_at(dx, t, i) : 0;
            for (int32_t j = 0; j < args->topk; j++) {
                sum += d_logits[j] * value_at(&args->weight, ids[j], i);
            }
            store_f32(dx->data, dx->dtype, t * dx->stride[0] + i, (float)sum);
        }
        for (int32_t j = 0; d_weight->n_dims && j < args->topk; j++) {
            float *row = (float *)d_weight->data + ids[j] * d_weight->stride[0];
            for (int64_t i = 0; i < x->shape[1]; i++) {
                row[i] = (float)((double)row[i] + d_logits[j] * value_at(x, t, i));
            }
        }
    }
    return MSA_OK;
}
