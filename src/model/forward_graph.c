/* Recordings of a forward pass: one launch instead of several hundred.
 *
 * A recording keeps pointers and shapes and uploads the arrays of the step itself, so it serves
 * every batch with the same numbers of tokens, sequences and wanted rows. A shape is recorded when
 * it comes the second time: the odd last chunk of a prompt never pays for a recording, and whatever
 * an operator sets up on its first launch is not recorded. The least recently used shape makes room
 * for a new one.
 */
#include "model/forward_pass.h"

#include "base/error.h"

#include <string.h>

static msa_status launch_operators(const msa__pass *p)
{
    MSA_TRY(msa__pass_layers(p));
    return p->n_rows > 0 ? msa__pass_head(p, 0, p->n_rows) : MSA_OK;
}

/* The recording of this shape, or NULL after making room for it. */
static msa__recording *find_shape(const msa__pass *p)
{
    msa__forward *f = p->forward;
    msa__recording *oldest = &f->recordings[0];
    for (int32_t i = 0; i < MSA__MAX_RECORDINGS; i++) {
        msa__recording *r = &f->recordings[i];
        if (r->last_used < oldest->last_used) oldest = r;
        if (r->n_tokens != p->n_tokens || r->n_seqs != p->n_seqs || r->n_rows != p->n_rows) {
            continue;
        }
        r->last_used = ++f->n_runs;
        return r;
    }
    msa_graph_destroy(f->ctx, oldest->graph);
    *oldest = (msa__recording){p->n_tokens, p->n_seqs, p->n_rows, ++f->n_runs, NULL};
    return NULL;
}

static msa_status record(const msa__pass *p, msa_graph **graph)
{
    msa_context *ctx = p->forward->ctx;
    MSA_TRY(msa_graph_begin(ctx));
    msa_status status = launch_operators(p);
    if (status == MSA_OK) return msa_graph_end(ctx, graph);
    MSA_TRY(msa_graph_end(ctx, NULL));
    return status;
}

msa_status msa__pass_run(const msa__pass *p)
{
    msa__forward *f = p->forward;
    if (p->n_rows > f->max_rows)
        return msa__pass_layers(p); /* the caller runs the head in pieces */
    if (p->taps || f->args.no_graphs || f->graphs_failed ||
        !msa_context_uses_device_memory(f->ctx)) {
        return launch_operators(p);
    }
    msa__recording *r = find_shape(p);
    if (!r) return launch_operators(p);
    if (!r->graph && record(p, &r->graph) != MSA_OK) {
        f->graphs_failed = 1; /* an error that is not about recording comes again below */
        return launch_operators(p);
    }
    return msa_graph_launch(f->ctx, r->graph);
}

void msa__forward_drop_recordings(msa__forward *forward)
{
    for (int32_t i = 0; i < MSA__MAX_RECORDINGS; i++) {
        msa_graph_destroy(forward->ctx, forward->recordings[i].graph);
    }
    memset(forward->recordings, 0, sizeof(forward->recordings));
}
