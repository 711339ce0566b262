/* Counting choices and moving biases; see balance.h. */
#include "train/balance.h"

#include "base/error.h"
#include "msa/memory.h"

#include <stdlib.h>
#include <string.h>

static size_t count_bytes(const msa__config *c)
{
    return (size_t)c->n_layers * (size_t)c->n_experts * sizeof(int64_t);
}

msa_status msa__balance_create(msa__balance *b, msa__parameters *parameters, int64_t max_tokens)
{
    const msa__config *c = parameters->config;
    memset(b, 0, sizeof(*b));
    b->parameters = parameters;
    if (!c->n_experts) return MSA_OK;
    b->counts = calloc(1, count_bytes(c));
    b->values = malloc((size_t)c->n_experts * sizeof(*b->values));
    b->ids = malloc((size_t)max_tokens * (size_t)c->n_experts_per_token * sizeof(*b->ids));
    if (b->counts && b->values && b->ids) return MSA_OK;
    msa__balance_free(b);
    return MSA_FAIL(MSA_ENOMEM, "train: no memory to count %lld choices of experts",
                    (long long)max_tokens);
}

void msa__balance_free(msa__balance *b)
{
    free(b->counts);
    free(b->ids);
    free(b->values);
    memset(b, 0, sizeof(*b));
}

void msa__balance_clear(msa__balance *b)
{
    if (b->counts) memset(b->counts, 0, count_bytes(b->parameters->config));
}

msa_status msa__balance_count(msa__balance *b, const msa__walk *walk)
{
    const msa__config *c = b->parameters->config;
    int64_t n = (int64_t)walk->n_tokens * c->n_experts_per_token;
    for (int32_t layer = 0; layer < c->n_layers; layer++) {
        if (!c->layers[layer].moe) continue;
        int64_t *counts = b->counts + (int64_t)layer * c->n_experts;
        MSA_TRY(msa_memory_download(b->parameters->ctx, b->ids, walk->expert_ids[layer],
                                    (size_t)n * sizeof(*b->ids)));
        for (int64_t i = 0; i < n; i++) counts[b->ids[i]]++;
    }
    return MSA_OK;
}

static msa_status update_layer(msa__balance *b, const msa__parameter *bias, const int64_t *counts,
                               double rate)
{
    int64_t n = bias->n, total = 0;
    for (int64_t e = 0; e < n; e++) total += counts[e];
    MSA_TRY(msa__parameters_get(b->parameters, bias, 0, n, b->values));
    for (int64_t e = 0; e < n; e++) {
        /* counts against the mean, in integers */
        int64_t excess = counts[e] * n - total;
        if (excess != 0) b->values[e] += (float)(excess > 0 ? -rate : rate);
    }
    return msa__parameters_put(b->parameters, bias, 0, n, b->values);
}

static double layer_load(const msa__config *c, const int64_t *counts)
{
    int64_t total = 0, largest = 0;
    for (int32_t e = 0; e < c->n_experts; e++) {
        total += counts[e];
        if (counts[e] > largest) largest = counts[e];
    }
    return total ? (double)largest * c->n_experts / (double)total : 0;
}

msa_status msa__balance_update(msa__balance *b, double rate, double *worst_load)
{
    const msa__config *c = b->parameters->config;
    *worst_load = 0;
    for (int32_t layer = 0; b->counts && layer < c->n_layers; layer++) {
        double load = layer_load(c, b->counts + (int64_t)layer * c->n_experts);
        if (load > *worst_load) *worst_load = load;
    }
    for (int32_t i = 0; rate > 0 && i < b->parameters->n_list; i++) {
        const msa__parameter *one = &b->parameters->list[i];
        if (one->group != MSA__GROUP_ROUTER_BIAS) continue;
        MSA_TRY(update_layer(b, one, b->counts + (int64_t)one->spec.layer * c->n_experts, rate));
    }
    msa__balance_clear(b);
    return MSA_OK;
}
