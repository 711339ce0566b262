/* Head and cross-entropy, a few rows at a time: the logits of a micro-batch never exist at once. */
#include "train/walk.h"

#include "base/error.h"

typedef struct rows_piece {
    int64_t n;
    msa_tensor residual, d_residual; /* [n, H] f32 */
    msa_tensor normed;               /* [n, H] A */
    msa_tensor logits;               /* [n, vocab] f32, then their gradient */
    msa_tensor d_normed;             /* [n, H] f32 */
} rows_piece;

static rows_piece take_rows(const msa__walk *w, int64_t first, int64_t n)
{
    const msa__config *c = w->args.config;
    int64_t hidden = c->hidden_size, at = first * hidden;
    rows_piece p = {.n = n};
    p.residual = msa_tensor_make(w->residual[c->n_layers] + at, MSA_DTYPE_F32, 2, n, hidden, 0, 0);
    p.normed = msa_tensor_make(w->head_normed, w->args.dtype, 2, n, hidden, 0, 0);
    p.logits = msa_tensor_make(w->logits, MSA_DTYPE_F32, 2, n, c->vocab_size, 0, 0);
    if (w->d_residual) {
        p.d_residual = msa_tensor_make(w->d_residual + at, MSA_DTYPE_F32, 2, n, hidden, 0, 0);
        p.d_normed = msa_tensor_make(w->d_head_normed, MSA_DTYPE_F32, 2, n, hidden, 0, 0);
    }
    return p;
}

static msa_status piece_back(msa__walk *w, const rows_piece *p)
{
    const msa__weights *weights = w->args.weights, *gradient = &w->args.gradients->gradient;
    msa_linear_backward_args head;
    msa_linear_backward_args_init(&head);
    head.x = p->normed;
    head.weight = weights->head;
    head.d_out = p->logits;
    head.dx = p->d_normed;
    head.d_weight = gradient->head.w;
    MSA__WALK_OP(w, msa_linear_backward, &head);
    msa_rmsnorm_backward_args norm;
    msa_rmsnorm_backward_args_init(&norm);
    norm.x = p->residual;
    norm.weight = weights->final_norm;
    norm.eps = w->args.config->rms_norm_eps;
    norm.one_plus = w->args.config->norm_one_plus;
    norm.d_out = p->d_normed;
    norm.dx = p->d_residual;
    norm.d_weight = gradient->final_norm;
    MSA__WALK_OP(w, msa_rmsnorm_backward, &norm);
    return MSA_OK;
}

static msa_status run_piece(msa__walk *w, int64_t first, int64_t n, int32_t with_gradients)
{
    rows_piece p = take_rows(w, first, n);
    MSA_TRY(msa__walk_norm(w, p.residual, &w->args.weights->final_norm, p.normed));
    MSA_TRY(msa__walk_linear(w, p.normed, &w->args.weights->head, p.logits, 0));
    msa_cross_entropy_args args;
    msa_cross_entropy_args_init(&args);
    args.logits = p.logits;
    args.targets = w->targets + first;
    args.weight = w->mode.loss_weight;
    args.loss = msa_tensor_make(w->loss + first, MSA_DTYPE_F32, 1, n, 0, 0, 0);
    if (with_gradients) args.d_logits = p.logits;
    MSA__WALK_CALL(w, msa_cross_entropy, &args);
    return with_gradients ? piece_back(w, &p) : MSA_OK;
}

msa_status msa__walk_loss(msa__walk *w, int32_t with_gradients)
{
    for (int64_t first = 0; first < w->n_tokens; first += w->head_rows) {
        int64_t left = w->n_tokens - first;
        MSA_TRY(run_piece(w, first, left < w->head_rows ? left : w->head_rows, with_gradients));
    }
    return MSA_OK;
}
