/* What the parts of a forward pass share while one batch runs. */
#ifndef MSA_MODEL_FORWARD_PASS_H
#define MSA_MODEL_FORWARD_PASS_H

#include "model/forward.h"

typedef struct msa__pass {
    msa__forward *forward;
    const msa__config *config;
    const msa__batch *batch; /* host arrays */
    const msa_taps *taps;    /* NULL: nobody watches */
    msa__step step;          /* where the operators read it */
    size_t step_bytes;       /* to upload from f->host_step to f->step */
    int32_t n_tokens, n_seqs;
    int32_t n_rows; /* whose logits are wanted */
} msa__pass;

static inline msa_tensor rows(const void *data, msa_dtype dtype, int64_t n_rows, int64_t width)
{
    return msa_tensor_make(data, dtype, 2, n_rows, width, 0, 0);
}

static inline msa_tensor heads(const void *data, msa_dtype dtype, int64_t n_rows, int64_t n_heads,
                               int64_t dim)
{
    return msa_tensor_make(data, dtype, 3, n_rows, n_heads, dim, 0);
}

/* Operators with this pass's constants filled in. */
msa_status msa__pass_rmsnorm(const msa__pass *p, msa_tensor x, const msa_tensor *weight,
                             msa_tensor out);
msa_status msa__pass_linear(const msa__pass *p, msa_tensor x, const msa_weight *weight,
                            msa_tensor out, int32_t accumulate);

msa_status msa__pass_rope(const msa__pass *p, msa_tensor x, msa_tensor out);

/* Show a tensor to the caller, who reads host memory. */
msa_status msa__pass_tap(const msa__pass *p,
                         msa_status (*see)(void *user, int32_t layer, const msa_tensor *tensor),
                         int32_t layer, msa_tensor tensor);

/* f->attended of a Lightning layer from the normed residual, (L19)-(L23). */
msa_status msa__pass_lightning(const msa__pass *p, int32_t layer);

/* Index queries, keys and head weights of a DSA layer from the normed residual, and, when the keys
 * are in the cache, f->attended over the tokens they choose, (D1)-(D4). */
msa_status msa__pass_project_token_index(const msa__pass *p, const msa__layer_weights *w);
msa_status msa__pass_attend_tokens(const msa__pass *p, const msa_kv_view *view);

/* residual += o_proj(attention(norm(residual))), by the layer's kind of attention. */
msa_status msa__pass_attention(const msa__pass *p, int32_t layer);

/* What is derived from keys, in every layer: of the last n_new tokens of the batch's sequences. */
msa_status msa__pass_derive_all(const msa__pass *p, int64_t n_new);

/* Pack the arrays of a step into memory (NULL: only measure); returns their bytes. */
size_t msa__step_lay_out(void *memory, int32_t n_tokens, int32_t n_seqs, int32_t n_rows,
                         msa__step *step);

/* Upload of the step, embedding and layers: tokens in, the residual stream of every token out. */
msa_status msa__pass_layers(const msa__pass *p);

/* Final norm and head for the wanted rows first..first+n-1, at most max_rows; into f->logits. */
msa_status msa__pass_head(const msa__pass *p, int64_t first, int64_t n);

/* Layers and, for at most max_rows wanted rows, the head: recorded or launched one by one. */
msa_status msa__pass_run(const msa__pass *p);

/* Forget every recording. */
void msa__forward_drop_recordings(msa__forward *forward);

#endif
