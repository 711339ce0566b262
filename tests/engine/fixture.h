/* A small golden model, opened, with an engine for session tests. */
#ifndef MSA_TESTS_ENGINE_FIXTURE_H
#define MSA_TESTS_ENGINE_FIXTURE_H

#include "golden/run.h"

#define MODEL_TOKENS 150 /* of fixture_tokens */

/* Folder of a committed golden model. */
const char *fixture_dir(const char *name);

/* MODEL_TOKENS ids below 256, fixed; `stream` chooses among sequences. */
const int32_t *fixture_tokens(int32_t stream);

msa_session *session_make(msa_engine *engine);

/* Feed tokens in one pass of the public call; the session keeps the last logits. */
void advance(msa_engine *engine, msa_session *session, const int32_t *tokens, int64_t n_tokens);

/* The sessions' last logits are the same bits. */
void expect_same_logits(const msa_session *a, const msa_session *b, int32_t vocab);

/* A name in a fresh temporary folder, a folder made in it, and removing all of it. */
const char *temporary_file(const char *name);
const char *temporary_folder(const char *name);
void remove_temporary_files(void);

#endif
