/* Internals of libmsa that libmsa_engine shares: exported, but no part of the ABI. */
#ifndef MSA_BASE_SHARED_H
#define MSA_BASE_SHARED_H

#define MSA__SHARED __attribute__((visibility("default")))

#endif
