/* See fixture.h. */
#define _XOPEN_SOURCE 700
#include "engine/fixture.h"

#include "base/rng.h"
#include "harness/cmocka_all.h"

#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

const char *fixture_dir(const char *name)
{
    static char dir[1024];
    const char *source = getenv("MSA_SOURCE_DIR");
    snprintf(dir, sizeof(dir), "%s/tests/golden/data/model/%s", source ? source : ".", name);
    return dir;
}

const int32_t *fixture_tokens(int32_t stream)
{
    static int32_t tokens[8][MODEL_TOKENS];
    assert_in_range(stream, 0, 7);
    for (uint64_t i = 0; i < MODEL_TOKENS; i++) {
        uint32_t words[4];
        msa__philox((uint64_t)stream, i, 0, words);
        tokens[stream][i] = (int32_t)(words[0] % 256);
    }
    return tokens[stream];
}

msa_session *session_make(msa_engine *engine)
{
    msa_session *session;
    EXPECT_OK(msa_session_create(&session, engine));
    return session;
}

void advance(msa_engine *engine, msa_session *session, const int32_t *tokens, int64_t n_tokens)
{
    msa_batch_item item = {.session = session, .tokens = tokens, .n_tokens = n_tokens};
    EXPECT_OK(msa_engine_forward(engine, &item, 1, NULL));
}

void expect_same_logits(const msa_session *a, const msa_session *b, int32_t vocab)
{
    const float *x = msa_session_logits(a), *y = msa_session_logits(b);
    assert_true(x && y);
    for (int32_t i = 0; i < vocab; i++) {
        if (memcmp(&x[i], &y[i], sizeof(*x))) {
            fail_msg("logits[%d]: %.9g and %.9g", i, (double)x[i], (double)y[i]);
        }
    }
}

static char folder[64];

const char *temporary_file(const char *name)
{
    static char path[128];
    if (!folder[0]) {
        snprintf(folder, sizeof(folder), "/tmp/msa-test-XXXXXX");
        assert_non_null(mkdtemp(folder));
    }
    snprintf(path, sizeof(path), "%s/%s", folder, name);
    return path;
}

const char *temporary_folder(const char *name)
{
    const char *path = temporary_file(name);
    assert_int_equal(mkdir(path, 0700), 0);
    return path;
}

static int remove_entry(const char *path, const struct stat *info, int type, struct FTW *where)
{
    (void)info;
    (void)type;
    (void)where;
    return remove(path);
}

void remove_temporary_files(void)
{
    if (folder[0]) (void)nftw(folder, remove_entry, 8, FTW_DEPTH | FTW_PHYS);
    folder[0] = '\0';
}
