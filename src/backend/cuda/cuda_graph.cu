/* Recording a stream into a CUDA graph. */
#include "backend/cuda/cuda_device.h"

msa_status cuda_graph_begin(msa_context *ctx)
{
    /* Relaxed: operators only launch, but a first launch may load its module. */
    MSA_CUDA_TRY("graph_begin",
                 cudaStreamBeginCapture(cuda_stream(ctx), cudaStreamCaptureModeRelaxed));
    return MSA_OK;
}

msa_status cuda_graph_end(msa_context *ctx, msa_graph **out)
{
    cudaGraph_t graph;
    cudaGraphExec_t executable;
    cudaError_t error = cudaStreamEndCapture(cuda_stream(ctx), &graph);
    if (error != cudaSuccess) {
        (void)cudaGetLastError(); /* a dropped recording leaves nothing behind */
        return out ? cuda_fail(error, "graph_end") : MSA_OK;
    }
    if (!out) {
        (void)cudaGraphDestroy(graph);
        return MSA_OK;
    }
    error = cudaGraphInstantiate(&executable, graph, 0);
    (void)cudaGraphDestroy(graph);
    MSA_CUDA_TRY("graph_end", error);
    *out = (msa_graph *)executable;
    return MSA_OK;
}

msa_status cuda_graph_launch(msa_context *ctx, msa_graph *graph)
{
    MSA_CUDA_TRY("graph_launch", cudaGraphLaunch((cudaGraphExec_t)graph, cuda_stream(ctx)));
    return MSA_OK;
}

void cuda_graph_destroy(msa_context *ctx, msa_graph *graph)
{
    (void)cudaSetDevice(cuda_state(ctx)->device);
    (void)cudaGraphExecDestroy((cudaGraphExec_t)graph);
}
