/* How fast this machine reads memory: the ceiling of everything that decodes. */
#ifndef CLI_BANDWIDTH_H
#define CLI_BANDWIDTH_H

#include <stddef.h>
#include <stdint.h>

typedef struct cli_bandwidth cli_bandwidth;

/* A buffer of n_bytes, shared out among n_threads readers. NULL: no memory. */
cli_bandwidth *cli_bandwidth_open(size_t n_bytes, int32_t n_threads);
void cli_bandwidth_close(cli_bandwidth *bandwidth);

/* Read the whole buffer n_passes times; bytes per second of the fastest pass, 0 when threads cannot
 * be started. */
double cli_bandwidth_measure(cli_bandwidth *bandwidth, int32_t n_passes);

#endif
