/* A device backend without a device: the cpu backend's operators on memory the host cannot touch.
 *
 * It catches what a GPU punishes late or never: its memory is unreadable except while an operator
 * or a copy runs; arrays handed to an operator must lie in it; asynchronous uploads take what the
 * host memory holds when the next operator runs, and asynchronous downloads arrive when the context
 * is synchronised, so that touching either side too early gives wrong numbers.
 */
#ifndef MSA_TESTS_ENGINE_FAKE_DEVICE_H
#define MSA_TESTS_ENGINE_FAKE_DEVICE_H

#include "msa/context.h"

/* What was done to it since fake_device_open. */
typedef struct fake_device_counts {
    int64_t n_allocations, n_live; /* of device and page-locked memory */
    int64_t n_operators;           /* run, recorded ones included */
    int64_t n_calls;               /* of operators, by the library */
    int64_t n_recordings, n_launches;
    int64_t n_uploads; /* by the library; recorded ones are not counted */
    int64_t n_downloads, n_synchronizations;
} fake_device_counts;

/* Turn a fresh cpu context into one of the fake device with this much memory; one at a time. */
void fake_device_open(msa_context *ctx, size_t memory_bytes);

fake_device_counts *fake_device(void);

/* 1: operators fail while they are recorded, as one that cannot be captured does. */
void fake_device_refuse_recording(int refuse);

#endif
