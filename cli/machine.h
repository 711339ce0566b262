/* What this machine offers: processor, memory, limits. Read from /proc and the control group. */
#ifndef CLI_MACHINE_H
#define CLI_MACHINE_H

#include <stdint.h>

typedef struct cli_machine {
    char cpu_model[96];
    char cpu_features[256]; /* those that matter to the kernels */
    int32_t cpus_usable;    /* by this process */
    int32_t cpus_online;
    int64_t memory_total;     /* bytes, the control group's limit included; 0: unknown */
    int64_t memory_available; /* without swapping; 0: unknown */
    int64_t memory_limit;     /* of the control group or the address space; 0: none */
} cli_machine;

void cli_read_machine(cli_machine *machine);

#endif
