/* The log-sum-exp of the scaled index scores over each row's selected tokens, an optional output.
 */
#ifndef MSA_CPU_INDEX_LSE_H
#define MSA_CPU_INDEX_LSE_H

#include "backend/cpu/cpu_tiles.h"
#include "ops/backend.h"

/* Bytes one thread needs. */
size_t msa__index_lse_scratch_bytes(const msa_select_args *args);

/* Fill args->index_lse from the finished args->blocks; scratch holds scratch_bytes per thread. */
void msa__index_lse(msa_context *ctx, const msa_select_args *args, const msa__tile *tiles,
                    int64_t n_tiles, unsigned char *scratch, size_t scratch_bytes);

#endif
