/* The numbers at the end of a run; see cli_print_stats and cli_write_stats in runtime.h. */
#include "runtime.h"

#include "output.h"
#include "progress.h"

#include <errno.h>
#include <string.h>

static double rate(int64_t count, double seconds)
{
    return seconds > 0 ? (double)count / seconds : 0;
}

static void print_speed(const char *label, int64_t tokens, double seconds)
{
    char count[32], time[32];
    double speed = rate(tokens, seconds);
    cli_talk("%-12s %s token%s in %s", label, cli_grouped(tokens, count), tokens == 1 ? "" : "s",
             cli_duration(seconds, time));
    if (tokens > 0 && speed >= 100) {
        cli_talk(", %s tokens/s", cli_grouped((int64_t)(speed + 0.5), count));
    } else if (tokens > 0) {
        cli_talk(", %.2f tokens/s", speed);
    }
}

static msa_session_stats session_stats(const cli_runtime *runtime)
{
    msa_session_stats stats;
    msa_session_stats_init(&stats);
    if (msa_session_get_stats(runtime->session, &stats) != MSA_OK) msa_session_stats_init(&stats);
    return stats;
}

void cli_print_stats(const cli_runtime *runtime)
{
    char a[32], b[32];
    msa_session_stats stats = session_stats(runtime);
    print_speed("prompt", runtime->prompt_tokens - runtime->reused_tokens, runtime->prompt_seconds);
    if (runtime->reused_tokens > 0) {
        cli_talk("; %s more were in the session", cli_grouped(runtime->reused_tokens, a));
    }
    cli_talk("\n");
    print_speed("generated", runtime->generated_tokens, runtime->generate_seconds);
    if (runtime->generated_tokens > 0) {
        cli_talk("; the first after %s", cli_duration(runtime->first_token_seconds, a));
    }
    cli_talk("\n");
    if (stats.blocks_visible > 0) {
        cli_talk("%-12s %s of %s visible (%.1f %%)\n", "blocks read",
                 cli_grouped(stats.blocks_read, a), cli_grouped(stats.blocks_visible, b),
                 100.0 * (double)stats.blocks_read / (double)stats.blocks_visible);
    }
    cli_talk("%-12s %s for %s tokens\n", "KV cache", cli_bytes((double)stats.kv_bytes, a),
             cli_grouped(msa_session_length(runtime->session), b));
}

int cli_write_stats(const cli_runtime *runtime, const char *path)
{
    msa_session_stats stats = session_stats(runtime);
    int64_t read_tokens = runtime->prompt_tokens - runtime->reused_tokens;
    FILE *file = fopen(path, "w");
    if (!file) return cli_complain("%s: %s", path, strerror(errno));
    fprintf(file,
            "{\"attention\": \"%s\", \"threads\": %d, \"isa\": \"%s\",\n"
            " \"prompt_tokens\": %lld, \"reused_tokens\": %lld, \"prompt_seconds\": %.6f,\n"
            " \"prompt_tokens_per_second\": %.3f, \"first_token_seconds\": %.6f,\n"
            " \"generated_tokens\": %lld, \"generate_seconds\": %.6f,\n"
            " \"generated_tokens_per_second\": %.3f,\n"
            " \"blocks_read\": %lld, \"blocks_visible\": %lld, \"kv_bytes\": %lld}\n",
            runtime->options->attention == 0 ? "sparse" : "dense",
            (int)msa_context_threads(runtime->ctx), msa_context_isa(runtime->ctx),
            (long long)runtime->prompt_tokens, (long long)runtime->reused_tokens,
            runtime->prompt_seconds, rate(read_tokens, runtime->prompt_seconds),
            runtime->first_token_seconds, (long long)runtime->generated_tokens,
            runtime->generate_seconds, rate(runtime->generated_tokens, runtime->generate_seconds),
            (long long)stats.blocks_read, (long long)stats.blocks_visible,
            (long long)stats.kv_bytes);
    int failed = ferror(file);
    failed |= fclose(file) != 0;
    return failed ? cli_complain("%s: %s", path, strerror(errno)) : CLI_OK;
}
