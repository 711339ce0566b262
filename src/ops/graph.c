/* Recording operators and launching them again: the device backend's graphs. */
#include "msa/graph.h"

#include "base/error.h"
#include "ops/backend.h"

msa_status msa_graph_begin(msa_context *ctx)
{
    if (!ctx->backend->graph_begin) {
        return MSA_FAIL(MSA_EUNSUPPORTED, "graph_begin: backend = %s, has no graphs",
                        ctx->backend->name);
    }
    return ctx->backend->graph_begin(ctx);
}

msa_status msa_graph_end(msa_context *ctx, msa_graph **out)
{
    if (out) *out = NULL;
    if (!ctx->backend->graph_end) {
        return MSA_FAIL(MSA_EUNSUPPORTED, "graph_end: backend = %s, has no graphs",
                        ctx->backend->name);
    }
    return ctx->backend->graph_end(ctx, out);
}

msa_status msa_graph_launch(msa_context *ctx, msa_graph *graph)
{
    if (!graph) return MSA_FAIL(MSA_EINVAL, "graph_launch: graph = NULL, must be a recording");
    return ctx->backend->graph_launch(ctx, graph);
}

void msa_graph_destroy(msa_context *ctx, msa_graph *graph)
{
    if (graph) ctx->backend->graph_destroy(ctx, graph);
}
