/* A model ready to read and write: what `msa run` and `msa chat` share.
 *
 * Open the model, start an engine with room for a number of tokens, feed tokens (only those the
 * session does not hold yet), generate.
 */
#ifndef CLI_RUNTIME_H
#define CLI_RUNTIME_H

#include "cache_size.h"
#include "command.h"
#include "device.h"
#include "text.h"

#include "msa/msa.h"

/* ---- options ------------------------------------------------------------------------------ */

typedef struct cli_model_options {
    const char *device;
    int64_t ctx_tokens, threads, chunk_tokens;
    int32_t dtype, cache_dtype, index_dtype, attention; /* choices */
    int32_t index8;
    double temperature, top_p, min_p;
    double repetition_penalty, frequency_penalty, presence_penalty;
    int64_t top_k, seed;
} cli_model_options;

#define CLI_MODEL_ARGUMENT(type, member)                                                           \
    {                                                                                              \
        CLI_FOLDER, 0, "MODEL", NULL, offsetof(type, member), NULL, 0, 0,                          \
            "Folder of the model: config.json, *.safetensors, tokenizer.json."                     \
    }

/* Rows for a command whose values (of this type) have a cli_model_options member. */
/* clang-format off */
#define CLI_SAMPLING_ROWS(type, member)                                                            \
    {CLI_GROUP, 0, "Sampling", NULL, 0, NULL, 0, 0, NULL},                                         \
    {CLI_NUMBER, 't', "temperature", "X", offsetof(type, member.temperature), NULL, 0, 100,        \
     "0 always takes the most likely token. This, --top-k, --top-p and "                           \
     "--repetition-penalty come from generation_config.json unless given."},                       \
    {CLI_COUNT, 0, "top-k", "N", offsetof(type, member.top_k), NULL, 0, INT32_MAX,                 \
     "Draw from the N most likely tokens; 0 is off."},                                             \
    {CLI_NUMBER, 0, "top-p", "X", offsetof(type, member.top_p), NULL, 0, 1,                        \
     "Draw from the most likely tokens that hold this much probability; 1 is off."},               \
    {CLI_NUMBER, 0, "min-p", "X", offsetof(type, member.min_p), "0", 0, 1,                         \
     "Drop tokens less likely than X times the most likely one."},                                 \
    {CLI_NUMBER, 0, "repetition-penalty", "X", offsetof(type, member.repetition_penalty), NULL,    \
     0.01, 100, "Above 1: make tokens already seen less likely."},                                 \
    {CLI_NUMBER, 0, "frequency-penalty", "X", offsetof(type, member.frequency_penalty), "0",       \
     -100, 100, "Subtract X per occurrence from the logit of a token already seen."},              \
    {CLI_NUMBER, 0, "presence-penalty", "X", offsetof(type, member.presence_penalty), "0",         \
     -100, 100, "Subtract X from the logit of every token already seen."},                         \
    {CLI_COUNT, 's', "seed", "N", offsetof(type, member.seed), "0", 0, 9007199254740992.0,         \
     "The same seed gives the same text."}

#define CLI_ENGINE_ROWS(type, member)                                                              \
    {CLI_GROUP, 0, "Engine", NULL, 0, NULL, 0, 0, NULL},                                           \
    CLI_DEVICE_ROW(offsetof(type, member.device)),                                                 \
    {CLI_CHOICE, 0, "attention", "sparse|dense", offsetof(type, member.attention), "sparse", 0, 0, \
     "sparse: as the model was made; dense: every layer reads every key."},                        \
    {CLI_CHOICE, 0, "dtype", "bf16|f32|f16", offsetof(type, member.dtype), "bf16", 0, 0,           \
     "Type of the activations."},                                                                  \
    {CLI_CHOICE, 0, "cache-dtype", "bf16|f32|fp8", offsetof(type, member.cache_dtype), "bf16",     \
     0, 0, "Type of keys and values in the cache."},                                               \
    {CLI_CHOICE, 0, "index-dtype", "bf16|f32|fp8", offsetof(type, member.index_dtype), "bf16",     \
     0, 0, "Type of index keys in the cache."},                                                    \
    CLI_INDEX8_ROW(offsetof(type, member.index8)),                                                 \
    {CLI_COUNT, 0, "chunk", "N", offsetof(type, member.chunk_tokens), NULL, 1, 65536,              \
     "Tokens of a prompt read at a time; 512, or 8192 on a GPU, unless given."},                                                        \
    {CLI_COUNT, 0, "threads", "N", offsetof(type, member.threads), NULL, 1, 1024,                  \
     "Threads; every core this process may use unless given."}
/* clang-format on */

/* ---- the runtime -------------------------------------------------------------------------- */

typedef struct cli_runtime {
    msa_context *ctx;
    msa_model *model;
    msa_tokenizer *tokenizer;
    msa_engine *engine;
    msa_session *session;
    msa_model_info info;
    msa_generation_config generation;
    msa_sample_args sampling;
    const cli_model_options *options;
    int64_t capacity_tokens;
    int32_t quiet; /* no progress */

    /* of the last cli_feed and cli_generate */
    int64_t prompt_tokens, reused_tokens, generated_tokens;
    double prompt_seconds, generate_seconds, first_token_seconds;
} cli_runtime;

/* Every function returns an exit status; CLI_FAILED and CLI_USAGE after a complaint. */

int cli_runtime_open(cli_runtime *runtime, const char *dir, const cli_model_options *options);
void cli_runtime_close(cli_runtime *runtime);

/* Make the engine and an empty session with room for n_tokens, if there is the memory; on a GPU the
 * weights are copied there first. */
int cli_runtime_start(cli_runtime *runtime, int64_t n_tokens);

/* Bytes of cache one token takes with these options. */
int64_t cli_runtime_token_bytes(const cli_runtime *runtime);

/* Make the session hold exactly these tokens: keep what it shares with them from the start, read
 * the rest with a progress bar. CLI_INTERRUPTED after Ctrl-C; what was read stays. */
int cli_feed(cli_runtime *runtime, const int32_t *tokens, int64_t n_tokens);

/* Generate at most n_tokens (fewer at a stop token or a full context), handing text to the callback
 * in whole characters. The session then holds every token handed out. */
typedef int (*cli_text_fn)(void *user, const char *text, size_t n_bytes); /* 0: stop */
int cli_generate(cli_runtime *runtime, int64_t n_tokens, int32_t ignore_stop, cli_text_fn text_fn,
                 void *user);

/* Speed, blocks and cache of the last feed and generation, on standard error. */
void cli_print_stats(const cli_runtime *runtime);

/* The same as JSON in a file. */
int cli_write_stats(const cli_runtime *runtime, const char *path);

#endif
