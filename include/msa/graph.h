/* Recorded work: the operators of one step, launched again as a whole.
 *
 * A device backend can record the operators called between begin and end instead of running them,
 * and launch the recording with one call. A recording keeps the pointers and shapes it was made
 * with; what lies in the arrays (ids, positions, page tables, lengths) may change between launches.
 * An upload in a recording takes what its host memory holds at each launch. Host backends have no
 * graphs: begin returns MSA_EUNSUPPORTED.
 */
#ifndef MSA_GRAPH_H
#define MSA_GRAPH_H

#include "msa/context.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct msa_graph msa_graph;

/* Start recording the context's operators. Until msa_graph_end, only operators, msa_memory_copy and
 * msa_memory_upload_async may be called on the context. Errors: MSA_EUNSUPPORTED, MSA_EDEVICE. */
MSA_API MSA_CHECK_RESULT msa_status msa_graph_begin(msa_context *ctx);

/* Stop recording. *out is owned: msa_graph_destroy. With out NULL the recording is dropped, as a
 * caller does when an operator failed in between. Errors: MSA_EDEVICE, MSA_ENOMEM. */
MSA_API MSA_CHECK_RESULT msa_status msa_graph_end(msa_context *ctx, msa_graph **out);

/* Run the recording once, in the order of the context's work. Errors: MSA_EDEVICE. */
MSA_API MSA_CHECK_RESULT msa_status msa_graph_launch(msa_context *ctx, msa_graph *graph);

MSA_API void msa_graph_destroy(msa_context *ctx, msa_graph *graph); /* NULL is allowed */

#ifdef __cplusplus
}
#endif
#endif
