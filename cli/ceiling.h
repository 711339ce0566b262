/* What the processor or the GPU under a context can do at best: reading memory, and bf16 matrix
 * products. Decoding is compared with the first, reading a prompt with the second. */
#ifndef CLI_CEILING_H
#define CLI_CEILING_H

#include "msa/context.h"

typedef struct cli_ceiling cli_ceiling;

/* NULL: no memory. */
cli_ceiling *cli_ceiling_open(msa_context *ctx);
void cli_ceiling_close(cli_ceiling *ceiling);

/* Bytes per second of the fastest of a few passes: threads that read host memory; on a GPU copies
 * inside its memory, bytes read and written counted. 0: it did not work. */
double cli_ceiling_memory(cli_ceiling *ceiling);

/* Operations per second of msa_linear on large bf16 matrices. 0: it did not work. */
double cli_ceiling_products(cli_ceiling *ceiling);

#endif
