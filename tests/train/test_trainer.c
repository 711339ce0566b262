/* Whole runs: they learn, and being cut off changes nothing. */
#define _GNU_SOURCE
#include "data/corpus.h"

#include "harness/cmocka_all.h"

#include "base/rng.h"
#include "msa/msa.h"
#include "train/trainer.h"

#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* The model of test_walk with the tokenizer of made models. */
#define MODEL_WITH(attention)                                                                      \
    "{\"architectures\": [\"MiniMaxM3SparseForCausalLM\"], \"hidden_size\": 48,"                   \
    "\"num_hidden_layers\": 3, \"num_attention_heads\": 4, \"num_key_value_heads\": 2,"            \
    "\"head_dim\": 16, \"vocab_size\": 320, \"max_position_embeddings\": 4096,"                    \
    "\"rms_norm_eps\": 1e-06, \"use_gemma_norm\": true, \"use_qk_norm\": true,"                    \
    "\"rope_theta\": 10000, \"rotary_dim\": 8, \"partial_rotary_factor\": 0.5,"                    \
    "\"hidden_act\": \"swigluoai\", \"swiglu_alpha\": 1.702, \"swiglu_limit\": 7.0,"               \
    "\"intermediate_size\": 32, \"shared_intermediate_size\": 32,"                                 \
    "\"dense_intermediate_size\": 64, \"num_local_experts\": 4, \"num_experts_per_tok\": 2,"       \
    "\"n_shared_experts\": 1, \"scoring_func\": \"sigmoid\", \"use_routing_bias\": true,"          \
    "\"routed_scaling_factor\": 2.0, \"moe_layer_freq\": [0, 1, 1],"                               \
    "\"tie_word_embeddings\": false, " attention "}"

#define MODEL                                                                                      \
    MODEL_WITH(                                                                                    \
        "\"sparse_attention_config\": {"                                                           \
        "\"use_sparse_attention\": true, \"sparse_num_index_heads\": 2,"                           \
        "\"sparse_index_dim\": 16, \"sparse_block_size\": 16, \"sparse_topk_blocks\": 2,"          \
        "\"sparse_local_block\": 1, \"sparse_init_block\": 0, \"sparse_score_type\": \"max\","     \
        "\"sparse_attention_freq\": [0, 1, 1]}")

#define OTHER_KINDS                                                                                \
    MODEL_WITH("\"layer_types\": [\"moba\", \"lightning\", \"moba_group\"],"                       \
               "\"index_block_size\": 16, \"moba_block_size\": 16, \"moba_topk\": 2")

#define DSA_KINDS                                                                                  \
    MODEL_WITH("\"layer_types\": [\"full_attention\", \"dsa\", \"dsa\"],"                          \
               "\"dsa_index_heads\": 2, \"dsa_index_dim\": 16, \"dsa_topk\": 24")

/* @ is the test's folder, % the output below it. */
#define CONFIG(stages, more) CONFIG_OF(MODEL, stages, more)
#define CONFIG_OF(model, stages, more)                                                             \
    "{\"output\": \"@/%\", \"seed\": 3, \"dtype\": \"f32\","                                       \
    "\"model\": {\"config\": " model "},"                                                          \
    "\"data\": {\"tokenizer\": \"@/tokenizer\", \"cache\": \"@/cache\","                           \
    "\"sources\": [{\"text\": \"@/text\"}]},"                                                      \
    "\"defaults\": {\"step_tokens\": 192, \"micro_tokens\": 96, \"length\": 96, \"lr\": 0.01,"     \
    "\"index_lr\": 0.01, \"schedule\": \"wsd\", \"warmup_steps\": 1},"                             \
    "\"router\": {\"bias_rate\": 0.01}, " more "\"stages\": [" stages "]}"

#define THREE_STAGES                                                                               \
    "{\"attention\": \"dense\", \"steps\": 2}, {\"attention\": \"warmup\", \"steps\": 2},"         \
    "{\"attention\": \"sparse\", \"steps\": 2}"

/* ---- helpers ------------------------------------------------------------------------------ */

static corpus make_corpus(void)
{
    char text[6000];
    corpus c = corpus_create();
    for (size_t i = 0; i < sizeof(text); i++) text[i] = "the same words again. "[i % 22];
    corpus_write(&c, "text/a.txt", text, sizeof(text));
    return c;
}

/* With @ and % filled in; to be freed. */
static char *fill_in(const corpus *c, const char *text, const char *output)
{
    size_t n = strlen(text), used = 0;
    char *filled = malloc(n + 64 * 20);
    assert_non_null(filled);
    for (size_t i = 0; i < n; i++) {
        const char *piece = text[i] == '@' ? c->dir : text[i] == '%' ? output : NULL;
        if (piece) {
            used += (size_t)sprintf(filled + used, "%s", piece);
        } else {
            filled[used++] = text[i];
        }
    }
    filled[used] = '\0';
    return filled;
}

static msa_context *make_context(void)
{
    msa_context *ctx;
    msa_context_args args;
    msa_context_args_init(&args);
    args.backend = "cpu";
    args.n_threads = 2;
    EXPECT_OK(msa_context_create(&ctx, &args));
    return ctx;
}

static msa_status open_run(const corpus *c, msa_context *ctx, const char *config,
                           const char *output, msa_trainer **trainer)
{
    msa_trainer_args args;
    char *text = fill_in(c, config, output);
    msa_trainer_args_init(&args);
    args.config_text = text;
    msa_status status = msa_trainer_create(trainer, ctx, &args);
    free(text);
    return status;
}

/* Go on for n steps at most, save, and say where the run is. */
static msa_trainer_state run_steps(const corpus *c, const char *config, const char *output,
                                   int64_t n)
{
    msa_trainer *trainer;
    msa_trainer_state state;
    msa_context *ctx = make_context();
    msa_trainer_state_init(&state);
    EXPECT_OK(open_run(c, ctx, config, output, &trainer));
    for (int64_t i = 0; i < n; i++) EXPECT_OK(msa_trainer_step(trainer));
    EXPECT_OK(msa_trainer_save(trainer));
    EXPECT_OK(msa_trainer_get_state(trainer, &state));
    state.stage_name = state.folder = NULL; /* the trainer's */
    msa_trainer_destroy(trainer);
    msa_context_destroy(ctx);
    return state;
}

static char *read_file(const char *path, size_t *n)
{
    struct stat info;
    FILE *file = fopen(path, "rb");
    if (!file) fail_msg("%s is not there", path);
    assert_int_equal(fstat(fileno(file), &info), 0);
    *n = (size_t)info.st_size;
    char *bytes = malloc(*n + 1);
    assert_non_null(bytes);
    assert_int_equal(fread(bytes, 1, *n, file), *n);
    bytes[*n] = '\0';
    fclose(file);
    return bytes;
}

static void expect_same_files(const corpus *c, const char *a, const char *b)
{
    size_t n_a, n_b;
    char *bytes_a = read_file(corpus_path(c, a), &n_a);
    char *bytes_b = read_file(corpus_path(c, b), &n_b);
    assert_int_equal(n_a, n_b);
    assert_memory_equal(bytes_a, bytes_b, n_a);
    free(bytes_a);
    free(bytes_b);
}

/* ---- learning ----------------------------------------------------------------------------- */

static void test_learns_a_pattern(void **state)
{
    (void)state;
    corpus c = make_corpus();
    static const char config[] = CONFIG("{\"attention\": \"dense\", \"steps\": 30},"
                                        "{\"attention\": \"warmup\", \"steps\": 10},"
                                        "{\"attention\": \"sparse\", \"steps\": 40}",
                                        "\"validation\": {\"every\": 20, \"batches\": 1, \"data\":"
                                        "{\"tokenizer\": \"@/tokenizer\", \"cache\": \"@/cache\","
                                        "\"sources\": [{\"text\": \"@/text\"}]}},");
    msa_trainer_state s = run_steps(&c, config, "run", 80);
    assert_int_equal(s.step, 80);
    assert_int_equal(s.stage, 3);
    assert_int_equal(s.tokens, 80 * 192);
    if (!(s.loss < 0.2)) fail_msg("loss %g", s.loss);
    assert_true(s.validation_loss < 0.3);
    assert_true(s.index_loss >= 0 && s.index_loss < 0.5);
    size_t n;
    char *log = read_file(corpus_path(&c, "run/log.jsonl"), &n);
    assert_non_null(strstr(log, "\"kind\": \"validation\", \"step\": 60"));
    assert_non_null(strstr(log, "\"oracle_ratio\": ["));
    assert_non_null(strstr(log, "\"ended_by\": \"steps\""));
    free(log);
    char *curves = read_file(corpus_path(&c, "run/curves.svg"), &n);
    assert_non_null(strstr(curves, "oracle ratio"));
    free(curves);
    corpus_remove(&c);
}

/* ---- the same bits ------------------------------------------------------------------------ */

static void test_resume_is_exact(void **state)
{
    (void)state;
    corpus c = make_corpus();
    static const char config[] = CONFIG(THREE_STAGES, "");
    (void)run_steps(&c, config, "whole", 6);
    for (int i = 0; i < 3; i++) (void)run_steps(&c, config, "parts", i == 1 ? 1 : i ? 2 : 3);
    expect_same_files(&c, "whole/step-000006/trainer.state", "parts/step-000006/trainer.state");
    expect_same_files(&c, "whole/step-000006/model.safetensors",
                      "parts/step-000006/model.safetensors");
    corpus_remove(&c);
}

/* The stages of a model whose index branch chooses tokens: its recall is in the log, and it goes on
 * with the same bits. */
static void test_stages_of_dsa(void **state)
{
    (void)state;
    corpus c = make_corpus();
    static const char config[] = CONFIG_OF(
        DSA_KINDS,
        "{\"attention\": \"dense\", \"steps\": 16}, {\"attention\": \"warmup\", \"steps\": 10},"
        "{\"attention\": \"sparse\", \"steps\": 4}",
        "\"validation\": {\"every\": 30, \"batches\": 1, \"data\": {\"tokenizer\": "
        "\"@/tokenizer\", \"cache\": \"@/cache\", \"sources\": [{\"text\": \"@/text\"}]}},");
    msa_trainer_state s = run_steps(&c, config, "whole", 30);
    if (!(s.validation_loss < 1)) fail_msg("loss %g", s.validation_loss);
    assert_true(s.index_loss >= 0 && s.index_loss < 0.5);
    int steps[] = {13, 9, 6, 2};
    for (int i = 0; i < 4; i++) (void)run_steps(&c, config, "parts", steps[i]);
    expect_same_files(&c, "whole/step-000030/trainer.state", "parts/step-000030/trainer.state");
    expect_same_files(&c, "whole/step-000030/model.safetensors",
                      "parts/step-000030/model.safetensors");
    size_t n;
    char *log = read_file(corpus_path(&c, "whole/log.jsonl"), &n);
    const char *ratios = strstr(log, "\"step\": 30");
    assert_non_null(ratios);
    ratios = strstr(ratios, "\"oracle_ratio\": [");
    assert_non_null(ratios);
    double first = 0, second = 0;
    assert_int_equal(sscanf(ratios, "\"oracle_ratio\": [%lf, %lf]", &first, &second), 2);
    assert_true(first > 0.5 && first <= 1 && second > 0.5 && second <= 1);
    free(log);
    corpus_remove(&c);
}

/* Other kinds of attention learn too, are saved, and go on with the same bits. */
static void test_other_kinds(void **state)
{
    (void)state;
    corpus c = make_corpus();
    static const char config[] = CONFIG_OF(OTHER_KINDS, "{\"steps\": 20}", "");
    msa_trainer_state s = run_steps(&c, config, "whole", 20);
    if (!(s.loss < 2)) fail_msg("loss %g", s.loss);
    (void)run_steps(&c, config, "parts", 8);
    (void)run_steps(&c, config, "parts", 12);
    expect_same_files(&c, "whole/step-000020/trainer.state", "parts/step-000020/trainer.state");
    msa_context *ctx = make_context();
    msa_model *model;
    EXPECT_OK(msa_model_open(&model, ctx, corpus_path(&c, "whole/step-000020")));
    EXPECT_OK(msa_model_verify(model, NULL, NULL));
    msa_model_close(model);
    msa_context_destroy(ctx);
    corpus_remove(&c);
}

static void test_recomputation_is_exact(void **state)
{
    (void)state;
    corpus c = make_corpus();
    static const char keep[] = CONFIG(THREE_STAGES, "\"activations\": \"keep\",");
    static const char recompute[] = CONFIG(THREE_STAGES, "\"activations\": \"recompute\",");
    (void)run_steps(&c, keep, "keep", 6);
    (void)run_steps(&c, recompute, "again", 6);
    expect_same_files(&c, "keep/step-000006/trainer.state", "again/step-000006/trainer.state");
    corpus_remove(&c);
}

/* A process that trains and saves after every step is killed at a moment it does not choose. What
 * it leaves goes on to the same end as a run that nobody disturbed. */
static void test_killed_at_any_time(void **state)
{
    (void)state;
    corpus c = make_corpus();
    static const char config[] = CONFIG(THREE_STAGES, "\"checkpoint\": {\"every\": 1},");
    (void)run_steps(&c, config, "whole", 6);
    for (uint32_t i = 0; i < 12; i++) {
        uint32_t words[4];
        msa__philox(5, i, 0, words);
        pid_t child = fork();
        assert_true(child >= 0);
        if (child == 0) {
            (void)run_steps(&c, config, "killed", 6);
            _exit(0);
        }
        struct timespec pause = {0, (long)(words[0] % 60) * 1000000};
        (void)nanosleep(&pause, NULL);
        (void)kill(child, SIGKILL);
        assert_int_equal(waitpid(child, NULL, 0), child);
    }
    (void)run_steps(&c, config, "killed", 6);
    expect_same_files(&c, "whole/step-000006/trainer.state", "killed/step-000006/trainer.state");
    corpus_remove(&c);
}

/* ---- what ends a stage, and a run ---------------------------------------------------------- */

/* The gate is looked at with every validation: here the first one passes it. */
static void test_gate_ends_a_stage(void **state)
{
    (void)state;
    corpus c = make_corpus();
    static const char config[] =
        CONFIG("{\"attention\": \"warmup\", \"steps\": 50, \"gate\": 0.01},"
               "{\"attention\": \"warmup\", \"steps\": 2, \"gate\": 1}",
               "\"validation\": {\"every\": 3, \"batches\": 1, \"data\":"
               "{\"tokenizer\": \"@/tokenizer\", \"cache\": \"@/cache\","
               "\"sources\": [{\"text\": \"@/text\"}]}},");
    msa_trainer_state s = run_steps(&c, config, "run", 3);
    assert_int_equal(s.stage, 1);
    assert_int_equal(s.n_steps, 5);
    assert_int_equal(s.n_tokens, 5 * 192);
    s = run_steps(&c, config, "run", 5);
    assert_int_equal(s.stage, 2);
    assert_int_equal(s.step, 5);
    size_t n;
    char *log = read_file(corpus_path(&c, "run/log.jsonl"), &n);
    assert_non_null(strstr(log, "\"ended_by\": \"gate\""));
    free(log);
    corpus_remove(&c);
}

static float weight_m(const msa_trainer *t)
{
    return t->parameters.m[t->parameters.group_begin[MSA__GROUP_UNDECAYED]];
}

/* Steps without finite gradients change nothing but the count; a row of them ends the run. */
static void test_not_finite(void **state)
{
    (void)state;
    corpus c = make_corpus();
    static const char config[] = CONFIG("{\"steps\": 9}", "\"optimizer\": {\"max_skipped\": 1},");
    msa_trainer *trainer;
    msa_trainer_state s;
    msa_context *ctx = make_context();
    msa_trainer_state_init(&s);
    EXPECT_OK(open_run(&c, ctx, config, "run", &trainer));
    EXPECT_OK(msa_trainer_step(trainer));
    float *weight =
              trainer->parameters.masters + trainer->parameters.group_begin[MSA__GROUP_UNDECAYED],
          kept = weight[0], moment = weight_m(trainer);
    weight[0] = NAN;
    EXPECT_OK(msa_trainer_step(trainer));
    EXPECT_OK(msa_trainer_get_state(trainer, &s));
    assert_true(s.skipped);
    assert_int_equal(s.step, 2);
    assert_true(weight_m(trainer) == moment);
    weight[0] = kept;
    EXPECT_OK(msa_trainer_step(trainer));
    EXPECT_OK(msa_trainer_get_state(trainer, &s));
    assert_false(s.skipped);
    weight[0] = NAN;
    EXPECT_OK(msa_trainer_step(trainer));
    EXPECT_FAIL(MSA_EINVAL, "not finite for 2 steps", msa_trainer_step(trainer));
    msa_trainer_destroy(trainer);
    msa_context_destroy(ctx);
    corpus_remove(&c);
}

/* ---- checkpoints -------------------------------------------------------------------------- */

static void test_checkpoint_is_a_model(void **state)
{
    (void)state;
    corpus c = make_corpus();
    static const char config[] = CONFIG(THREE_STAGES, "");
    (void)run_steps(&c, config, "run", 6);
    msa_context *ctx = make_context();
    msa_model *model;
    msa_tokenizer *tokenizer;
    EXPECT_OK(msa_model_open(&model, ctx, corpus_path(&c, "run/step-000006")));
    EXPECT_OK(msa_model_verify(model, NULL, NULL));
    EXPECT_OK(msa_tokenizer_open(&tokenizer, corpus_path(&c, "run/step-000006")));
    int32_t tokens[200];
    msa_recall layers[3];
    msa_recall_args args;
    for (int32_t i = 0; i < 200; i++) tokens[i] = "the same words again. "[i % 22];
    msa_recall_args_init(&args);
    args.model = model;
    args.tokens = tokens;
    args.n_tokens = 200;
    args.dtype = MSA_DTYPE_F32;
    args.layers = layers;
    for (args.dense = 0; args.dense <= 1; args.dense++) {
        EXPECT_OK(msa_recall_measure(&args));
        assert_int_equal(layers[0].n_rows, -1);
        for (int32_t i = 1; i < 3; i++) {
            assert_int_equal(layers[i].n_rows, 2 * (200 - 32));
            assert_true(layers[i].captured_mass > 0 && layers[i].captured_mass <= 1.0001);
            assert_true(layers[i].oracle_ratio > 0 && layers[i].oracle_ratio <= 1.0001);
            assert_true(layers[i].oracle_ratio_forced >= layers[i].oracle_ratio - 1e-9);
            assert_true(layers[i].score_recall <= layers[i].oracle_ratio + 1e-9);
            assert_true(layers[i].block_recall > 0 && layers[i].block_recall <= 1);
        }
    }
    msa_tokenizer_close(tokenizer);
    msa_model_close(model);
    msa_context_destroy(ctx);
    corpus_remove(&c);
}

static int32_t exists(const corpus *c, const char *name)
{
    struct stat info;
    return stat(corpus_path(c, name), &info) == 0;
}

static void test_old_checkpoints_go(void **state)
{
    (void)state;
    corpus c = make_corpus();
    static const char config[] =
        CONFIG(THREE_STAGES, "\"checkpoint\": {\"every\": 1, \"keep\": 2},");
    (void)run_steps(&c, config, "run", 6);
    assert_false(exists(&c, "run/step-000004"));
    assert_true(exists(&c, "run/step-000005"));
    assert_true(exists(&c, "run/step-000006"));
    corpus_remove(&c);
}

/* ---- refusals ----------------------------------------------------------------------------- */

static void expect_refusal(const corpus *c, const char *config, msa_status code, const char *text)
{
    msa_trainer *trainer;
    msa_context *ctx = make_context();
    EXPECT_FAIL(code, text, open_run(c, ctx, config, "refused", &trainer));
    assert_null(trainer);
    msa_context_destroy(ctx);
}

static void test_refusals(void **state)
{
    (void)state;
    corpus c = make_corpus();
    static const char unknown[] = CONFIG(THREE_STAGES, "\"optimiser\": {},");
    static const char unknown_stage[] = CONFIG("{\"steps\": 1, \"rate\": 1}", "");
    static const char both[] = CONFIG("{\"steps\": 1, \"tokens\": 1}", "");
    static const char neither[] = CONFIG("{\"attention\": \"dense\"}", "");
    static const char word[] = CONFIG("{\"steps\": 1, \"attention\": \"spare\"}", "");
    static const char frozen[] = CONFIG("{\"steps\": 1, \"freeze_backbone\": true}", "");
    static const char micro[] =
        CONFIG("{\"steps\": 1, \"micro_tokens\": 100, \"length\": 100}", "");
    static const char longer[] = CONFIG("{\"steps\": 1, \"step_tokens\": 8192,"
                                        "\"micro_tokens\": 8192, \"length\": 8192}",
                                        "");
    static const char gate[] =
        CONFIG("{\"steps\": 1, \"attention\": \"warmup\", \"gate\": 0.9}", "");
    expect_refusal(&c, unknown, MSA_EFORMAT,
                   "optimiser = {…}, is not a key; known are output, seed");
    expect_refusal(&c, unknown_stage, MSA_EFORMAT, "stages[0].rate = 1, is not a key");
    expect_refusal(&c, both, MSA_EFORMAT, "must have steps or tokens");
    expect_refusal(&c, neither, MSA_EFORMAT, "must have steps or tokens");
    expect_refusal(&c, word, MSA_EFORMAT, "must be one of dense|warmup|sparse");
    expect_refusal(&c, frozen, MSA_EFORMAT, "nothing would learn");
    expect_refusal(&c, micro, MSA_EFORMAT, "must be a multiple of micro_tokens = 100");
    expect_refusal(&c, longer, MSA_EINVAL, "must be at most 4096");
    expect_refusal(&c, gate, MSA_EFORMAT, "needs attention");
    expect_refusal(&c, "{\"output\": \"@/%\"}", MSA_EFORMAT, "data is missing");
    corpus_remove(&c);
}

/* A checkpoint belongs to its model and its data. */
static void test_other_run_is_refused(void **state)
{
    (void)state;
    corpus c = make_corpus();
    static const char config[] = CONFIG(THREE_STAGES, "");
    msa_trainer *trainer;
    msa_context *ctx = make_context();
    (void)run_steps(&c, config, "run", 1);
    corpus_write(&c, "text/b.txt", "more text", 9);
    EXPECT_FAIL(MSA_EFORMAT, "other data", open_run(&c, ctx, config, "run", &trainer));
    msa_context_destroy(ctx);
    corpus_remove(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_learns_a_pattern),
        cmocka_unit_test(test_resume_is_exact),
        cmocka_unit_test(test_stages_of_dsa),
        cmocka_unit_test(test_other_kinds),
        cmocka_unit_test(test_recomputation_is_exact),
        cmocka_unit_test(test_killed_at_any_time),
        cmocka_unit_test(test_gate_ends_a_stage),
        cmocka_unit_test(test_not_finite),
        cmocka_unit_test(test_checkpoint_is_a_model),
        cmocka_unit_test(test_old_checkpoints_go),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_other_run_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
