/* The header of a session file and its check.
 *
 * A file is, little-endian and without gaps:
 *
 *     msa__session_header
 *     tokens   n_tokens x i32
 *     logits   vocab_size x f32, when has_logits
 *     cache    for every layer, every page: K of every head, V of every head, index K where the
 * layer has that lane; only slots in use, so the file does not depend on what else the pool held
 *     state    newest state of every Lightning layer, f32 [layers, Hq, D, D]
 *     u64      checksum of everything before it (checksum.h), piece by piece in this order
 */
#ifndef MSA_ENGINE_SESSION_FILE_H
#define MSA_ENGINE_SESSION_FILE_H

#include "engine/engine.h"

#define MSA__SESSION_MAGIC   "msa-sess"
#define MSA__SESSION_VERSION 1

typedef struct msa__session_header {
    char magic[8];
    uint32_t version;
    uint32_t header_bytes;
    uint64_t file_bytes;
    uint64_t model; /* fingerprint of configuration and weights */
    int64_t n_tokens;
    int32_t has_logits;
    int32_t vocab_size;
    int32_t n_layers, n_kv_heads, head_dim, index_dim, block_size;
    int32_t k_dtype, v_dtype, k_index_dtype;
} msa__session_header;

/* The header a session of this engine with n_tokens tokens writes. */
msa_status msa__session_header_make(msa__session_header *header, const msa_engine *engine,
                                    int64_t n_tokens, int32_t has_logits);

/* A header read from `path` (file_bytes long) fits a new session of this engine.
 * Errors    MSA_EFORMAT, MSA_EVERSION, MSA_EBUSY more tokens than a session may have */
msa_status msa__session_header_check(const msa__session_header *header, const msa_engine *engine,
                                     const char *path, uint64_t file_bytes);

#endif
