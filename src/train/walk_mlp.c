/* A dense MLP, up and down. gate x and up x are kept, rounded; the hidden row is made again from
 * them, which costs no product. */
#include "train/walk.h"

#include "base/error.h"

/* What the activation reads and writes, [T, I] A. */
typedef struct mlp_rows {
    msa_tensor gate, up, hidden;
} mlp_rows;

static mlp_rows rows_of(const msa__walk *w, int32_t layer)
{
    const msa__layer_state *s = &w->layers[layer];
    int64_t width = w->args.config->dense_width;
    return (mlp_rows){msa__walk_rows(w, s->mlp_gate, w->args.dtype, width),
                      msa__walk_rows(w, s->mlp_up, w->args.dtype, width),
                      msa__walk_rows(w, w->mlp_hidden, w->args.dtype, width)};
}

static msa_status activate(const msa__walk *w, const mlp_rows *rows)
{
    msa_swiglu_args args;
    msa_swiglu_args_init(&args);
    args.gate = rows->gate;
    args.up = rows->up;
    args.activation = w->args.config->activation;
    args.out = rows->hidden;
    MSA__WALK_CALL(w, msa_swiglu, &args);
    return MSA_OK;
}

msa_status msa__walk_mlp(msa__walk *w, int32_t layer, msa_tensor x, msa_tensor out)
{
    const msa_mlp_weights *mlp = &w->args.weights->layers[layer].mlp;
    mlp_rows rows = rows_of(w, layer);
    MSA_TRY(msa__walk_linear(w, x, &mlp->gate, rows.gate, 0));
    MSA_TRY(msa__walk_linear(w, x, &mlp->up, rows.up, 0));
    MSA_TRY(activate(w, &rows));
    return msa__walk_linear(w, rows.hidden, &mlp->down, out, 1);
}

/* The slopes take the place of gate and up. */
static msa_status activate_back(const msa__walk *w, const mlp_rows *rows, msa_tensor d_hidden)
{
    msa_swiglu_backward_args args;
    msa_swiglu_backward_args_init(&args);
    args.gate = rows->gate;
    args.up = rows->up;
    args.activation = w->args.config->activation;
    args.d_out = d_hidden;
    args.d_gate = rows->gate;
    args.d_up = rows->up;
    MSA__WALK_CALL(w, msa_swiglu_backward, &args);
    return MSA_OK;
}

msa_status msa__walk_mlp_back(msa__walk *w, int32_t layer, msa_tensor x, msa_tensor d_out,
                              msa_tensor dx)
{
    const msa_mlp_weights *mlp = &w->args.weights->layers[layer].mlp;
    msa_mlp_gradients d = msa__mlp_gradients(&w->args.gradients->gradient.layers[layer].mlp);
    mlp_rows rows = rows_of(w, layer);
    msa_tensor d_hidden =
        msa__walk_rows(w, w->d_mlp_hidden, w->args.dtype, w->args.config->dense_width);
    MSA_TRY(activate(w, &rows));
    MSA_TRY(msa__walk_linear_back(w, rows.hidden, &mlp->down, d_out, d.down, d_hidden, 0));
    MSA_TRY(activate_back(w, &rows, d_hidden));
    MSA_TRY(msa__walk_linear_back(w, x, &mlp->gate, rows.gate, d.gate, dx, 0));
    return msa__walk_linear_back(w, x, &mlp->up, rows.up, d.up, dx, 1);
}
