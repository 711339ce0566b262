/* Gradient of dense attention, windows and sinks included: (M18) over the visible keys, the sink
 * being one more key of value 0. */
#include "backend/ref/ref_backend.h"
#include "backend/ref/ref_gradient.h"

size_t msa__ref_dense_attend_backward_workspace(const msa_context *ctx,
                                                const msa_dense_attend_backward_args *args)
{
    (void)ctx;
    (void)args;
    return 0;
}

/* Key j of the query at this position: not later, inside the window or one of the first tokens. */
static int is_visible(const msa_dense_attend_backward_args *args, int64_t j, int64_t position)
{
    if (j > position) return 0;
    return args->window == 0 || position - j < args->window || j < args->n_sink_tokens;
}

static void query_gradient(const msa_dense_attend_backward_args *args, const ref_attention *at,
                           int32_t seq, int64_t i, int64_t h, int64_t position)
{
    int64_t dim = args->q.shape[2], r = h / at->group;
    double dq[REF_MAX_HEAD_DIM] = {0};
    for (int64_t j = 0; j <= position; j++) {
        if (!is_visible(args, j, position)) continue;
        ref_pair pair = ref_pair_at(at, seq, i, h, j);
        ref_add_row(dq, pair.ds, ref_lane_row(at->kv, &at->kv->k, seq, j, r), dim);
    }
    ref_write_head(&args->dq, i, h, dq, 0);
}

static void key_gradient(const msa_dense_attend_backward_args *args, const ref_attention *at,
                         int32_t seq, int64_t r, int64_t j)
{
    int64_t first_query = args->cu_seqlens_q[seq], end_query = args->cu_seqlens_q[seq + 1];
    int64_t first_position = msa__kv_length(at->kv, seq) - (end_query - first_query);
    double dk[REF_MAX_HEAD_DIM] = {0}, dv[REF_MAX_HEAD_DIM] = {0};
    for (int64_t i = first_query; i < end_query; i++) {
        if (!is_visible(args, j, first_position + i - first_query)) continue;
        ref_add_key_gradient(at, seq, i, r, j, dk, dv);
    }
    ref_write_head(&args->dk, ref_first_key(at->kv, seq) + j, r, dk, 0);
    ref_write_head(&args->dv, ref_first_key(at->kv, seq) + j, r, dv, 0);
}

/* dS of the sink: P (0 - delta), over all queries of the head. */
static void sink_gradient(const msa_dense_attend_backward_args *args, const ref_attention *at,
                          int64_t h)
{
    double sum = 0, logit = (double)args->sink_logit[h];
    for (int64_t i = 0; i < args->q.shape[0]; i++) {
        sum -= ref_weight(logit, (double)*ref_f32_at(&args->lse, i, h)) * ref_delta(at, i, h);
    }
    ((float *)args->d_sink_logit.data)[h] += (float)sum;
}

msa_status msa__ref_dense_attend_backward(msa_context *ctx,
                                          const msa_dense_attend_backward_args *args,
                                          void *workspace)
{
    (void)ctx;
    (void)workspace;
    const int32_t *cu = args->cu_seqlens_q;
    int64_t n_heads = args->q.shape[1], n_groups = args->kv.k.shape[1];
    ref_attention at = {&args->q,  &args->out,         &args->lse,         &args->d_out,
                        &args->kv, n_heads / n_groups, (double)args->scale};
    ref_clear_rows(&args->dk);
    ref_clear_rows(&args->dv);
    for (int32_t s = 0; s < args->kv.n_seqs; s++) {
        int64_t n_keys = msa__kv_length(&args->kv, s);
        int64_t first_position = n_keys - (cu[s + 1] - cu[s]); /* (M2) */
        for (int64_t i = cu[s]; i < cu[s + 1]; i++) {
            for (int64_t h = 0; h < n_heads; h++) {
                query_gradient(args, &at, s, i, h, first_position + i - cu[s]);
            }
        }
        for (int64_t j = 0; j < n_keys; j++) {
            for (int64_t r = 0; r < n_groups; r++) key_gradient(args, &at, s, r, j);
        }
    }
    for (int64_t h = 0; h < n_heads && args->d_sink_logit.data; h++) sink_gradient(args, &at, h);
    return MSA_OK;
}
