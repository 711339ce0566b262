/* See cpu_moe_route.h. */
#include "backend/cpu/cpu_moe_route.h"

#include "backend/cpu/cpu_product.h"
#include "base/overflow.h"

#include <string.h>

int64_t msa__moe_widest_hidden(const msa_moe_args *args)
{
    int64_t routed = args->n_experts ? args->experts[0].gate.w.shape[0] : 0;
    int64_t shared = args->shared ? args->shared->gate.w.shape[0] : 0;
    return routed > shared ? routed : shared;
}

int32_t msa__moe_is_bf16(const msa_moe_args *args)
{
    int32_t all = 1;
    for (int64_t e = 0; e <= args->n_experts; e++) {
        const msa_mlp_weights *mlp = e < args->n_experts ? &args->experts[e] : args->shared;
        if (!mlp) continue;
        all &= msa__product_is_bf16(args->x.dtype, &mlp->gate);
        all &= msa__product_is_bf16(args->x.dtype, &mlp->up);
        all &= msa__product_is_bf16(args->x.dtype, &mlp->down);
    }
    return all;
}

/* Counting sort: count, sum up, place; placing moves every start to the next expert's. */
void msa__moe_sort(msa__moe_route *route, const msa_moe_args *args, int64_t first_token,
                   int64_t n_tokens)
{
    int64_t n_routed = args->n_experts, n = n_routed ? n_tokens * args->topk : 0;
    const int32_t *ids = n_routed ? args->ids + first_token * args->topk : NULL;
    const float *weights = n_routed ? args->weights + first_token * args->topk : NULL;
    int64_t *start = route->start;
    route->n_experts = n_routed + (args->shared != NULL);
    memset(start, 0, (size_t)(route->n_experts + 1) * sizeof(*start));
    for (int64_t i = 0; i < n; i++) start[ids[i] + 1]++;
    for (int64_t e = 0; e < n_routed; e++) start[e + 1] += start[e];
    for (int64_t i = 0; i < n; i++) {
        int64_t column = start[ids[i]]++;
        route->token[column] = (int32_t)(i / args->topk);
        route->weight[column] = weights[i];
        if (route->choice) route->choice[column] = (int32_t)i;
    }
    memmove(start + 1, start, (size_t)n_routed * sizeof(*start));
    start[0] = 0;
    if (!args->shared) return;
    for (int64_t t = 0; t < n_tokens; t++) {
        route->token[n + t] = (int32_t)t;
        route->weight[n + t] = 1;
    }
    start[n_routed + 1] = n + n_tokens;
}

/* A segment with the tokens of the one before it (a single token, mostly) shares its panels. */
static void place_tokens(msa__moe_segment *segment, const msa__moe_segment *before,
                         const msa__moe_route *route)
{
    segment->packed_panel = segment->panel;
    if (!before || before->n_columns != segment->n_columns) return;
    if (!memcmp(route->token + before->column, route->token + segment->column,
                (size_t)segment->n_columns * sizeof(*route->token))) {
        segment->packed_panel = before->packed_panel;
    }
}

void msa__moe_next_wave(msa__moe_wave *wave, const msa__moe_route *route)
{
    int64_t n_panels = 0;
    wave->is_first = wave->column == 0;
    wave->n_segments = wave->n_columns_max = 0;
    while (wave->expert < route->n_experts) {
        int64_t left = route->start[wave->expert + 1] - wave->column;
        if (left == 0) {
            wave->expert++;
            continue;
        }
        int64_t n = left < MSA__PRODUCT_TOKENS ? left : MSA__PRODUCT_TOKENS;
        if (n_panels + msa__ceil_div(n, MSA__PANEL) > MSA__WAVE_PANELS) break;
        msa__moe_segment *next = &wave->segments[wave->n_segments];
        next->expert = wave->expert;
        next->column = wave->column;
        next->n_columns = n;
        next->n_panels = msa__ceil_div(n, MSA__PANEL);
        next->panel = n_panels;
        place_tokens(next, wave->n_segments ? next - 1 : NULL, route);
        n_panels += next->n_panels;
        wave->n_segments++;
        wave->column += next->n_columns;
        if (next->n_columns > wave->n_columns_max) wave->n_columns_max = next->n_columns;
    }
    wave->is_last = wave->column == route->start[route->n_experts];
}
