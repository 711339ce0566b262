/* Session files: any bytes either restore a session that works, or leave it empty. */
#define _GNU_SOURCE
#include "fuzz/fuzz.h"

#include "msa/engine.h"

#include <sys/mman.h>
#include <unistd.h>

static msa_engine *make_engine(void)
{
    static char dir[1024];
    const char *source = getenv("MSA_SOURCE_DIR");
    snprintf(dir, sizeof(dir), "%s/tests/golden/data/model/tiny-a", source ? source : ".");
    msa_context *ctx;
    msa_model *model;
    msa_engine *engine;
    msa_context_args context_args;
    msa_engine_args args;
    msa_context_args_init(&context_args);
    context_args.backend = "ref";
    msa_engine_args_init(&args);
    args.max_tokens = 64;
    args.k_dtype = args.v_dtype = args.k_index_dtype = MSA_DTYPE_F8_E4M3;
    FUZZ_CHECK(msa_context_create(&ctx, &context_args) == MSA_OK);
    FUZZ_CHECK(msa_model_open(&model, ctx, dir) == MSA_OK);
    FUZZ_CHECK(msa_engine_create(&engine, ctx, model, &args) == MSA_OK);
    return engine;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    static msa_engine *engine; /* for the life of the process */
    char path[64];
    msa_session *session;
    if (!engine) engine = make_engine();
    int fd = memfd_create("session", MFD_CLOEXEC);
    FUZZ_CHECK(fd >= 0 && write(fd, data, bytes) == (ssize_t)bytes);
    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    FUZZ_CHECK(msa_session_create(&session, engine) == MSA_OK);
    msa_status status = msa_session_load(session, path);
    FUZZ_CHECK(status == MSA_OK || msa_session_length(session) == 0);
    int32_t token = 7;
    msa_batch_item item = {.session = session, .tokens = &token, .n_tokens = 1};
    if (status == MSA_OK) FUZZ_CHECK(msa_engine_forward(engine, &item, 1, NULL) == MSA_OK);
    msa_session_destroy(session);
    close(fd);
    return 0;
}
