/* Feeding tokens and generating new ones, timed; see runtime.h. */
#include "runtime.h"

#include "interrupt.h"
#include "output.h"
#include "progress.h"

#include <string.h>

typedef struct feed_watch {
    cli_progress bar;
    int64_t skipped; /* tokens the session already held */
} feed_watch;

static int32_t watch_feed(void *user, int64_t done, int64_t total)
{
    feed_watch *watch = user;
    cli_progress_update(&watch->bar, watch->skipped + done, watch->skipped + total);
    return cli_interrupted();
}

/* Tokens at the start that the session already holds. */
static int64_t common_prefix(const msa_session *session, const int32_t *tokens, int64_t n_tokens)
{
    const int32_t *held = msa_session_tokens(session);
    int64_t n_held = msa_session_length(session), n = 0;
    while (n < n_held && n < n_tokens && held[n] == tokens[n]) n++;
    return n;
}

int cli_feed(cli_runtime *runtime, const int32_t *tokens, int64_t n_tokens)
{
    feed_watch watch;
    double start = cli_seconds();
    msa_status status = MSA_OK;
    if (n_tokens > runtime->capacity_tokens) {
        return cli_complain("%lld tokens to read, the context holds %lld; use a larger --ctx",
                            (long long)n_tokens, (long long)runtime->capacity_tokens);
    }
    int64_t kept = common_prefix(runtime->session, tokens, n_tokens);
    /* The logits belong to the last token of the session: read that token again, unless the session
     * ends exactly here. */
    if (kept == n_tokens && msa_session_length(runtime->session) > kept) kept--;
    if (kept < msa_session_length(runtime->session)) {
        status = msa_session_truncate(runtime->session, kept);
    }
    cli_progress_begin(&watch.bar, "reading", "tokens", runtime->quiet);
    watch.skipped = kept;
    if (status == MSA_OK && kept < n_tokens) {
        cli_progress_update(&watch.bar, kept, n_tokens);
        status = msa_session_prefill(runtime->session, tokens + kept, n_tokens - kept, watch_feed,
                                     &watch);
    }
    cli_progress_clear();
    runtime->reused_tokens = kept;
    runtime->prompt_tokens = n_tokens;
    runtime->prompt_seconds = cli_seconds() - start;
    runtime->generated_tokens = 0;
    runtime->generate_seconds = runtime->first_token_seconds = 0;
    if (status == MSA_ECANCELED) return CLI_INTERRUPTED;
    return status == MSA_OK ? CLI_OK : cli_complain_library(status);
}

static int is_stop(const msa_generation_config *config, int32_t token)
{
    for (int32_t i = 0; i < config->n_eos; i++) {
        if (config->eos_token_ids[i] == token) return 1;
    }
    return 0;
}

/* Text of one token, whole characters only. Models have more rows than their tokenizer has tokens:
 * such an id has no text and shows as U+FFFD. */
static msa_status hand_out(cli_runtime *runtime, int32_t token, cli_characters *stream,
                           cli_buffer *text)
{
    char *bytes = NULL;
    size_t n_bytes = 0;
    msa_status status = msa_tokenizer_decode(runtime->tokenizer, &token, 1, &bytes, &n_bytes);
    cli_buffer_clear(text);
    if (status == MSA_EINVAL) {
        if (cli_characters_end(stream, text) && cli_buffer_add(text, "\xef\xbf\xbd", 3)) {
            status = MSA_OK;
        }
    } else if (status == MSA_OK && !cli_characters_add(stream, bytes, n_bytes, text)) {
        status = MSA_ENOMEM;
    }
    msa_free(bytes);
    return status;
}

int cli_generate(cli_runtime *runtime, int64_t n_tokens, int32_t ignore_stop, cli_text_fn text_fn,
                 void *user)
{
    cli_characters stream = {.n_pending = 0};
    cli_buffer text = {0};
    msa_status status = MSA_OK;
    int interrupted = 0, wanted = 1;
    double start = cli_seconds();
    int64_t room = runtime->capacity_tokens - msa_session_length(runtime->session);
    runtime->generated_tokens = 0;
    while (wanted && runtime->generated_tokens < n_tokens && runtime->generated_tokens < room) {
        int32_t token;
        if ((interrupted = cli_interrupted()) != 0) break;
        status = msa_session_sample(runtime->session, &runtime->sampling, &token);
        if (status != MSA_OK || (!ignore_stop && is_stop(&runtime->generation, token))) break;
        status = hand_out(runtime, token, &stream, &text);
        if (status != MSA_OK) break;
        if (runtime->generated_tokens++ == 0) {
            runtime->first_token_seconds = runtime->prompt_seconds + cli_seconds() - start;
        }
        if (text.n) wanted = text_fn(user, text.data, text.n);
        msa_batch_item item = {.session = runtime->session, .tokens = &token, .n_tokens = 1};
        status = msa_engine_forward(runtime->engine, &item, 1, NULL);
        if (status != MSA_OK) break;
    }
    runtime->generate_seconds = cli_seconds() - start;
    cli_buffer_clear(&text);
    if (cli_characters_end(&stream, &text) && text.n && wanted) text_fn(user, text.data, text.n);
    cli_buffer_free(&text);
    if (status != MSA_OK) return cli_complain_library(status);
    return interrupted ? CLI_INTERRUPTED : CLI_OK;
}
