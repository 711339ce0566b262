/* Saving a session to one file, and restoring it bit by bit. */
#define _POSIX_C_SOURCE 200809L
#include "engine/session_file.h"

#include "base/alloc.h"
#include "base/error.h"
#include "base/overflow.h"
#include "model/checksum.h"
#include "msa/memory.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* One walk over the file's contents serves both directions, so they cannot disagree. */
typedef struct {
    FILE *file;
    const char *path;
    int writing;
    uint64_t sum;
} stream;

static msa_status transfer(stream *s, void *data, size_t bytes)
{
    size_t done = s->writing ? fwrite(data, 1, bytes, s->file) : fread(data, 1, bytes, s->file);
    if (done == bytes) {
        s->sum = msa__checksum(s->sum, data, bytes);
        return MSA_OK;
    }
    if (s->writing || ferror(s->file)) {
        return MSA_FAIL(MSA_EIO, "session file: %s: %s", s->path, strerror(errno));
    }
    return MSA_FAIL(MSA_EFORMAT, "session file: %s: ends early", s->path);
}

/* The tokens of one page in one lane; [pages, (Hkv,) P, dim] with contiguous tiles. A page that
 * lies on a device comes to the host, or goes back from there, as a whole. */
static msa_status transfer_page(stream *s, const msa__forward *forward, const msa_tensor *lane,
                                int64_t page, int64_t n_tokens)
{
    if (!lane->data) return MSA_OK;
    size_t element = msa_dtype_bytes(lane->dtype);
    int has_heads = lane->n_dims == 4;
    int64_t n_heads = has_heads ? lane->shape[1] : 1;
    size_t head_bytes = has_heads ? (size_t)lane->stride[1] * element : 0;
    size_t tile_bytes = (size_t)(n_tokens * lane->shape[lane->n_dims - 1]) * element;
    size_t page_bytes = (size_t)lane->stride[0] * element;
    unsigned char *on_device = (unsigned char *)lane->data + (size_t)page * page_bytes;
    unsigned char *data = forward->host_copy ? forward->host_copy : on_device;
    if (forward->host_copy && s->writing) {
        MSA_TRY(msa_memory_download(forward->ctx, data, on_device, page_bytes));
    }
    for (int64_t head = 0; head < n_heads; head++) {
        MSA_TRY(transfer(s, data + (size_t)head * head_bytes, tile_bytes));
    }
    if (!forward->host_copy || s->writing) return MSA_OK;
    return msa_memory_upload(forward->ctx, on_device, data, page_bytes);
}

static msa_status transfer_cache(stream *s, msa_session *session)
{
    msa_engine *engine = session->engine;
    const msa__forward *forward = &engine->forward;
    int64_t block = engine->model->config.block_size;
    for (int32_t layer = 0; layer < engine->model->config.n_layers; layer++) {
        msa_kv_view view;
        int32_t length;
        MSA_TRY(msa_cache_view(engine->cache, layer, &session->seq, 1, forward->host_page_table,
                               forward->args.max_pages, &length, &view));
        for (int64_t first = 0; first < session->n_tokens; first += block) {
            int64_t left = session->n_tokens - first, page = view.page_table[first / block];
            int64_t n_tokens = left < block ? left : block;
            MSA_TRY(transfer_page(s, forward, &view.k, page, n_tokens));
            MSA_TRY(transfer_page(s, forward, &view.v, page, n_tokens));
            MSA_TRY(transfer_page(s, forward, &view.k_index, page, n_tokens));
        }
    }
    return MSA_OK;
}

/* Everything else relies on ids of the vocabulary. */
static msa_status check_tokens(const msa_session *session, const char *path)
{
    int32_t vocab = session->engine->model->config.vocab_size;
    for (int64_t i = 0; i < session->n_tokens; i++) {
        if (session->tokens[i] >= 0 && session->tokens[i] < vocab) continue;
        return MSA_FAIL(MSA_EFORMAT, "session file: %s: tokens[%lld] = %d, must be 0..%d", path,
                        (long long)i, session->tokens[i], vocab - 1);
    }
    return MSA_OK;
}

/* Everything behind the header but the checksum. */
static msa_status transfer_body(stream *s, msa_session *session)
{
    size_t vocab = (size_t)session->engine->model->config.vocab_size;
    MSA_TRY(transfer(s, session->tokens, (size_t)session->n_tokens * sizeof(*session->tokens)));
    MSA_TRY(check_tokens(session, s->path));
    if (session->has_logits) {
        MSA_TRY(transfer(s, session->logits, vocab * sizeof(*session->logits)));
    }
    MSA_TRY(transfer_cache(s, session));
    const msa__forward *forward = &session->engine->forward;
    MSA_TRY(transfer_page(s, forward, &forward->states,
                          msa__forward_state_slot(forward, session->seq),
                          session->engine->model->config.head_dim));
    return s->writing ? MSA_OK : msa__forward_derive(&session->engine->forward, session->seq);
}

/* ---- save --------------------------------------------------------------------------------- */

static msa_status write_file(stream *s, const msa_session *session)
{
    msa__session_header header;
    MSA_TRY(
        msa__session_header_make(&header, session->engine, session->n_tokens, session->has_logits));
    MSA_TRY(transfer(s, &header, sizeof(header)));
    MSA_TRY(transfer_body(s, (msa_session *)(uintptr_t)session)); /* writing only reads it */
    uint64_t sum = s->sum;
    MSA_TRY(transfer(s, &sum, sizeof(sum)));
    if (fflush(s->file) != 0 || fsync(fileno(s->file)) != 0) {
        return MSA_FAIL(MSA_EIO, "session file: %s: %s", s->path, strerror(errno));
    }
    return MSA_OK;
}

/* Write to a new file beside `path`, then give it the name. temporary ends in XXXXXX. */
static msa_status write_and_rename(const msa_session *session, const char *path, char *temporary)
{
    int fd = mkstemp(temporary);
    if (fd < 0) return MSA_FAIL(MSA_EIO, "session file: %s: %s", temporary, strerror(errno));
    FILE *file = fdopen(fd, "wb");
    stream s = {file, temporary, 1, MSA__CHECKSUM_START};
    msa_status status = MSA_OK;
    if (!file) {
        status = MSA_FAIL(MSA_ENOMEM, "session file: %s: %s", temporary, strerror(errno));
        close(fd);
    } else {
        status = write_file(&s, session);
        if (fclose(file) != 0 && status == MSA_OK) {
            status = MSA_FAIL(MSA_EIO, "session file: %s: %s", temporary, strerror(errno));
        }
    }
    if (status == MSA_OK && rename(temporary, path) != 0) {
        status = MSA_FAIL(MSA_EIO, "session file: %s: %s", path, strerror(errno));
    }
    if (status != MSA_OK) (void)unlink(temporary);
    return status;
}

msa_status msa_session_save(const msa_session *session, const char *path)
{
    if (!session) return MSA_FAIL(MSA_EINVAL, "session_save: session = NULL, must be a session");
    if (!path) return MSA_FAIL(MSA_EINVAL, "session_save: path = NULL, must be a file name");
    static const char suffix[] = ".XXXXXX";
    const msa_allocator *allocator = msa__context_allocator(session->engine->ctx);
    size_t length = strlen(path), bytes = length + sizeof(suffix);
    char *temporary = allocator->alloc(allocator->user, bytes, 1);
    if (!temporary) return MSA_FAIL(MSA_ENOMEM, "session_save: no memory for a file name");
    memcpy(temporary, path, length);
    memcpy(temporary + length, suffix, sizeof(suffix));
    msa_status status = write_and_rename(session, path, temporary);
    allocator->free(allocator->user, temporary, bytes);
    return status;
}

/* ---- load --------------------------------------------------------------------------------- */

static msa_status read_contents(stream *s, msa_session *session, const msa__session_header *header)
{
    MSA_TRY(msa_cache_extend(session->engine->cache, session->seq, header->n_tokens));
    session->n_tokens = header->n_tokens;
    session->has_logits = header->has_logits;
    MSA_TRY(transfer_body(s, session));
    uint64_t expected = s->sum, sum;
    MSA_TRY(transfer(s, &sum, sizeof(sum)));
    if (sum != expected) {
        return MSA_FAIL(MSA_EFORMAT,
                        "session file: %s: checksum = %016llx, its contents have %016llx", s->path,
                        (unsigned long long)sum, (unsigned long long)expected);
    }
    return MSA_OK;
}

static msa_status read_file(stream *s, msa_session *session)
{
    struct stat info;
    msa__session_header header;
    if (fstat(fileno(s->file), &info) != 0) {
        return MSA_FAIL(MSA_EIO, "session file: %s: %s", s->path, strerror(errno));
    }
    if (!S_ISREG(info.st_mode)) {
        return MSA_FAIL(MSA_EIO, "session file: %s: must be a regular file", s->path);
    }
    MSA_TRY(transfer(s, &header, sizeof(header)));
    MSA_TRY(msa__session_header_check(&header, session->engine, s->path, (uint64_t)info.st_size));
    msa_status status = read_contents(s, session, &header);
    if (status == MSA_OK) return MSA_OK;
    session->n_tokens = 0;
    session->has_logits = 0;
    MSA_TRY(msa_cache_truncate(session->engine->cache, session->seq, 0));
    return status;
}

msa_status msa_session_load(msa_session *session, const char *path)
{
    if (!session) return MSA_FAIL(MSA_EINVAL, "session_load: session = NULL, must be a session");
    if (!path) return MSA_FAIL(MSA_EINVAL, "session_load: path = NULL, must be a file name");
    if (session->n_tokens != 0) {
        return MSA_FAIL(MSA_EINVAL, "session_load: the session has %lld tokens, must be empty",
                        (long long)session->n_tokens);
    }
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a FIFO must not hang */
    FILE *file = fd >= 0 ? fdopen(fd, "rb") : NULL;
    if (!file) {
        msa_status failed = MSA_FAIL(MSA_EIO, "session file: %s: %s", path, strerror(errno));
        if (fd >= 0) close(fd);
        return failed;
    }
    stream s = {file, path, 0, MSA__CHECKSUM_START};
    msa_status status = read_file(&s, session);
    (void)fclose(file);
    return status;
}
