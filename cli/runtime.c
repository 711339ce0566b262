/* Opening a model and starting an engine, with the memory checked before the work; see runtime.h.
 */
#include "runtime.h"

#include "output.h"
#include "progress.h"

#include <math.h>
#include <string.h>

/* Choices as dtypes, in the order of the words in CLI_ENGINE_ROWS. */
static msa_dtype activation_dtype(int32_t choice)
{
    const msa_dtype dtypes[] = {MSA_DTYPE_BF16, MSA_DTYPE_F32, MSA_DTYPE_F16};
    return dtypes[choice];
}

static msa_dtype cache_dtype(int32_t choice)
{
    const msa_dtype dtypes[] = {MSA_DTYPE_BF16, MSA_DTYPE_F32, MSA_DTYPE_F8_E4M3};
    return dtypes[choice];
}

static float number_or(double given, float otherwise)
{
    return isnan(given) ? otherwise : (float)given;
}

/* Sampling as generation_config.json says, changed by what the user gave. */
static void choose_sampling(cli_runtime *runtime)
{
    const cli_model_options *o = runtime->options;
    const msa_generation_config *g = &runtime->generation;
    msa_sample_args *s = &runtime->sampling;
    msa_sample_args_init(s);
    s->temperature = number_or(o->temperature, g->do_sample ? g->temperature : 0);
    s->top_k = o->top_k == CLI_UNSET ? g->top_k : (int32_t)o->top_k;
    s->top_p = number_or(o->top_p, g->top_p);
    s->min_p = (float)o->min_p;
    s->repetition_penalty = number_or(o->repetition_penalty, g->repetition_penalty);
    s->frequency_penalty = (float)o->frequency_penalty;
    s->presence_penalty = (float)o->presence_penalty;
    s->seed = (uint64_t)o->seed;
}

static msa_status open_parts(cli_runtime *runtime, const char *dir)
{
    msa_status status = msa_model_open(&runtime->model, runtime->ctx, dir);
    if (status == MSA_OK) status = msa_tokenizer_open(&runtime->tokenizer, dir);
    msa_model_info_init(&runtime->info);
    if (status == MSA_OK) status = msa_model_get_info(runtime->model, &runtime->info);
    msa_generation_config_init(&runtime->generation);
    if (status == MSA_OK) {
        status = msa_model_generation_config(runtime->model, &runtime->generation);
    }
    return status;
}

int cli_runtime_open(cli_runtime *runtime, const char *dir, const cli_model_options *options)
{
    memset(runtime, 0, sizeof(*runtime));
    runtime->options = options;
    int opened = cli_open_context(options->device, options->threads, &runtime->ctx);
    if (opened != CLI_OK) return opened;
    msa_status status = open_parts(runtime, dir);
    if (status != MSA_OK) return cli_complain_library(status);
    int32_t n_ids = msa_tokenizer_size(runtime->tokenizer);
    if (n_ids > runtime->info.vocab_size) {
        return cli_complain(
            "%s: tokenizer.json has token ids up to %d, config.json a vocabulary of "
            "%d; they belong to different models",
            dir, (int)n_ids - 1, (int)runtime->info.vocab_size);
    }
    choose_sampling(runtime);
    return CLI_OK;
}

void cli_runtime_close(cli_runtime *runtime)
{
    msa_session_destroy(runtime->session);
    msa_engine_destroy(runtime->engine);
    msa_tokenizer_close(runtime->tokenizer);
    msa_model_close(runtime->model);
    msa_context_destroy(runtime->ctx);
}

int64_t cli_runtime_token_bytes(const cli_runtime *runtime)
{
    return cli_token_bytes(&runtime->info, cache_dtype(runtime->options->cache_dtype),
                           cache_dtype(runtime->options->index_dtype), runtime->options->index8);
}

/* Refuse a cache that the memory cannot hold, and say what would fit. */
static int check_memory(const cli_runtime *runtime, int64_t n_tokens)
{
    char need[32], have[32], fit_text[32];
    int64_t token_bytes = cli_runtime_token_bytes(runtime);
    int64_t available = cli_cache_memory(runtime->ctx, &runtime->info);
    if (available < 0) {
        return cli_complain("the weights need %s, %s more than the GPU has free; leave --device "
                            "out or use a smaller model",
                            cli_bytes((double)runtime->info.weight_bytes, need),
                            cli_bytes((double)-available, have));
    }
    if (available == 0) return CLI_OK; /* unknown */
    if ((double)n_tokens * (double)token_bytes <= (double)available) return CLI_OK;
    int64_t fit = cli_tokens_that_fit(token_bytes, available / 10 * 9);
    return cli_complain("a cache for %lld tokens needs %s, %s has %s available%s; "
                        "%s tokens would fit (fewer tokens, --cache-dtype fp8)",
                        (long long)n_tokens,
                        cli_bytes((double)n_tokens * (double)token_bytes, need),
                        cli_place(runtime->ctx), cli_bytes((double)available, have),
                        msa_context_uses_device_memory(runtime->ctx) ? " beside the weights" : "",
                        cli_grouped(fit, fit_text));
}

int cli_runtime_start(cli_runtime *runtime, int64_t n_tokens)
{
    const cli_model_options *o = runtime->options;
    if (n_tokens > runtime->info.max_positions) {
        return cli_complain("%lld tokens of context, this model was made for at most %lld",
                            (long long)n_tokens, (long long)runtime->info.max_positions);
    }
    int status = check_memory(runtime, n_tokens);
    if (status != CLI_OK) return status;
    msa_engine_args args;
    msa_engine_args_init(&args);
    args.activation_dtype = activation_dtype(o->dtype);
    args.k_dtype = args.v_dtype = cache_dtype(o->cache_dtype);
    args.k_index_dtype = cache_dtype(o->index_dtype);
    args.index8 = o->index8;
    args.max_tokens = n_tokens;
    if (o->chunk_tokens != CLI_UNSET) args.chunk_tokens = (int32_t)o->chunk_tokens;
    args.attention = o->attention == 0 ? MSA_ATTENTION_SPARSE : MSA_ATTENTION_DENSE;
    msa_status created = cli_load_weights(runtime->model, runtime->quiet);
    if (created == MSA_OK) {
        created = msa_engine_create(&runtime->engine, runtime->ctx, runtime->model, &args);
    }
    if (created == MSA_OK) created = msa_session_create(&runtime->session, runtime->engine);
    if (created != MSA_OK) return cli_complain_library(created);
    runtime->capacity_tokens = n_tokens;
    return CLI_OK;
}
