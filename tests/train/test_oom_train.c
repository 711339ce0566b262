/* Failing every allocation of a small run, from opening it to its checkpoint: each failure is
 * MSA_ENOMEM, and (sanitizer build) leaks nothing. */
#include "data/corpus.h"

#include "harness/cmocka_all.h"
#include "harness/failing_malloc.h"

#include "msa/msa.h"

#include <stdio.h>
#include <stdlib.h>

static const char config[] =
    "{\"output\": \"@/run%d\", \"dtype\": \"bf16\", \"model\": {\"config\": {"
    "\"architectures\": [\"MiniMaxM3SparseForCausalLM\"], \"hidden_size\": 16,"
    "\"num_hidden_layers\": 1, \"num_attention_heads\": 1, \"num_key_value_heads\": 1,"
    "\"head_dim\": 16, \"vocab_size\": 320, \"max_position_embeddings\": 64,"
    "\"rms_norm_eps\": 1e-06, \"use_gemma_norm\": true, \"use_qk_norm\": true,"
    "\"rope_theta\": 10000, \"rotary_dim\": 8, \"hidden_act\": \"swigluoai\","
    "\"swiglu_alpha\": 1.702, \"swiglu_limit\": 7.0, \"intermediate_size\": 16,"
    "\"shared_intermediate_size\": 16, \"num_local_experts\": 2, \"num_experts_per_tok\": 1,"
    "\"n_shared_experts\": 1, \"scoring_func\": \"sigmoid\", \"use_routing_bias\": true,"
    "\"routed_scaling_factor\": 1.0, \"moe_layer_freq\": [1],"
    "\"tie_word_embeddings\": true, \"sparse_attention_config\": {"
    "\"use_sparse_attention\": true, \"sparse_num_index_heads\": 1, \"sparse_index_dim\": 16,"
    "\"sparse_block_size\": 16, \"sparse_topk_blocks\": 1, \"sparse_local_block\": 1,"
    "\"sparse_init_block\": 0, \"sparse_score_type\": \"max\", \"sparse_attention_freq\": [1]}}},"
    "\"data\": {\"tokenizer\": \"@/tokenizer\", \"cache\": \"@/cache\","
    "\"sources\": [{\"text\": \"@/text\"}]},"
    "\"validation\": {\"every\": 1, \"batches\": 1, \"data\": {\"tokenizer\": \"@/tokenizer\","
    "\"cache\": \"@/cache\", \"sources\": [{\"text\": \"@/text\"}]}},"
    "\"stages\": [{\"attention\": \"sparse\", \"steps\": 1, \"step_tokens\": 32,"
    "\"micro_tokens\": 32, \"length\": 32}]}";

/* The configuration of attempt n, which has an output folder of its own. */
static void fill_in(const corpus *c, int32_t n, char *text, size_t bytes)
{
    size_t used = 0;
    for (const char *at = config; *at; at++) {
        assert_true(used + 80 < bytes);
        if (*at == '@') {
            used += (size_t)snprintf(text + used, bytes - used, "%s", c->dir);
        } else if (*at == '%') {
            used += (size_t)snprintf(text + used, bytes - used, "%d", n);
            at++;
        } else {
            text[used++] = *at;
        }
    }
    text[used] = '\0';
}

static msa_status run(msa_context *ctx, const char *text)
{
    msa_trainer *trainer;
    msa_trainer_args args;
    msa_trainer_args_init(&args);
    args.config_text = text;
    msa_status status = msa_trainer_create(&trainer, ctx, &args);
    if (status == MSA_OK) status = msa_trainer_step(trainer);
    msa_trainer_destroy(trainer);
    return status;
}

static void test_oom_run(void **state)
{
    (void)state;
    msa_context *ctx;
    msa_context_args args;
    static char text[4096];
    corpus c = corpus_create();
    corpus_write(&c, "text/a.txt", "a text about a text", 19);
    msa_context_args_init(&args);
    args.backend = "cpu";
    args.n_threads = 1;
    EXPECT_OK(msa_context_create(&ctx, &args));
    fill_in(&c, 0, text, sizeof(text));
    EXPECT_OK(run(ctx, text)); /* the text is tokenized once */
    for (int32_t n = 1;; n++) {
        fill_in(&c, n, text, sizeof(text));
        failing_malloc_begin(n);
        msa_status status = run(ctx, text);
        if (!failing_malloc_end()) {
            EXPECT_OK(status);
            assert_true(n > 50);
            break;
        }
        if (status == MSA_OK) continue; /* PCRE2's JIT compiler may do without some of its memory */
        if (status == MSA_EIO) continue; /* nor can the C library open a file without memory */
        assert_int_equal(status, MSA_ENOMEM);
        assert_non_null(strstr(msa_last_error(), "no memory"));
    }
    msa_context_destroy(ctx);
    corpus_remove(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_oom_run)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
