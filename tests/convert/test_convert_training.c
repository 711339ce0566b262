/* A conversion that is trained: full attention teaches the index, the selection finds what full
 * attention looks at, and the backbone keeps its bits while it is frozen. */
#include "harness/cmocka_all.h"
#include "model/make_preset.h"
#include "model/tensors.h"
#include "msa/convert.h"
#include "msa/train.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#define LENGTH 256

static msa_context *ctx;
static folder scene; /* text and runs; its folders are removed by name */
static char dense[300], converted[300];

/* ---- a text with something to look back for ------------------------------------------------ */

/* Sentences about a few people, each with a number that is repeated whenever the name comes. */
static void write_text(const char *path, uint32_t seed)
{
    static const char *const names[] = {"Anna", "Boris", "Clara", "David", "Elena", "Felix"};
    static const char *const verbs[] = {"saw", "met", "asked", "found"};
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    uint32_t state = seed, numbers[6] = {0};
    for (int i = 0; i < 1500; i++) {
        state = state * 1664525u + 1013904223u;
        uint32_t a = state >> 8 & 0xff, b = state >> 16 & 0xff;
        if (i % 60 == 0) {
            for (uint32_t k = 0; k < 6; k++) numbers[k] = 100 + (state >> k & 0x1ff);
        }
        fprintf(file, "%s %u %s %s %u.\n", names[a % 6], numbers[a % 6], verbs[b % 4],
                names[b / 4 % 6], numbers[b / 4 % 6]);
    }
    assert_int_equal(fclose(file), 0);
}

static const char *place(const char *name)
{
    static char paths[4][300];
    static int next;
    char *path = paths[next++ % 4];
    snprintf(path, 300, "%s/%s", scene.dir, name);
    return path;
}

/* ---- runs ---------------------------------------------------------------------------------- */

typedef struct run_result {
    double first_loss, last_loss, first_index_loss, last_index_loss;
    char folder[300];
} run_result;

/* Train a model on the text to the end of one stage. */
static run_result train(const char *output, const char *from, const char *stage)
{
    char config[4000];
    snprintf(config, sizeof(config),
             "{\"output\": \"%s\", \"seed\": 1, \"dtype\": \"f32\","
             " \"model\": {\"init_from\": \"%s\"},"
             " \"data\": {\"tokenizer\": \"%s\", \"cache\": \"%s\","
             "  \"sources\": [{\"text\": \"%s\", \"weight\": 1}]},"
             " \"checkpoint\": {\"every\": 1000, \"keep\": 1},"
             " \"defaults\": {\"length\": %d, \"micro_tokens\": 512, \"step_tokens\": 512,"
             "  \"schedule\": \"constant\"},"
             " \"stages\": [%s]}",
             place(output), from, from, place("tokens"), place("text.txt"), LENGTH, stage);
    run_result r = {0};
    msa_trainer *trainer;
    msa_trainer_args args;
    msa_trainer_state s;
    msa_trainer_args_init(&args);
    msa_trainer_state_init(&s);
    args.config_text = config;
    msa_status status = msa_trainer_create(&trainer, ctx, &args);
    if (status == MSA_EUNSUPPORTED) {
        printf("skipped: %s\n", msa_last_error());
        exit(77);
    }
    EXPECT_OK(status);
    EXPECT_OK(msa_trainer_get_state(trainer, &s));
    while (s.stage < s.n_stages) {
        EXPECT_OK(msa_trainer_step(trainer));
        EXPECT_OK(msa_trainer_get_state(trainer, &s));
        if (s.step == 1) {
            r.first_loss = s.loss;
            r.first_index_loss = s.index_loss;
        }
    }
    r.last_loss = s.loss;
    r.last_index_loss = s.index_loss;
    EXPECT_OK(msa_trainer_save(trainer));
    EXPECT_OK(msa_trainer_get_state(trainer, &s));
    assert_non_null(s.folder);
    snprintf(r.folder, sizeof(r.folder), "%s", s.folder);
    msa_trainer_destroy(trainer);
    return r;
}

/* Means over the MSA layers. */
static msa_recall recall(const char *dir)
{
    msa_model *model;
    msa_tokenizer *tokenizer;
    msa_recall layers[8], mean = {0};
    size_t bytes, n_tokens;
    int32_t *tokens;
    EXPECT_OK(msa_model_open(&model, ctx, dir));
    EXPECT_OK(msa_tokenizer_open(&tokenizer, dense));
    char *text = read_whole_file(place("valid.txt"), &bytes);
    EXPECT_OK(msa_tokenizer_encode(tokenizer, text, bytes, &tokens, &n_tokens));
    assert_true(n_tokens >= 2 * LENGTH);
    msa_recall_args args;
    msa_recall_args_init(&args);
    args.model = model;
    args.tokens = tokens;
    args.n_tokens = 2 * LENGTH;
    args.dtype = MSA_DTYPE_F32;
    args.dense = 1;
    args.layers = layers;
    EXPECT_OK(msa_recall_measure(&args));
    for (int i = 1; i < 3; i++) {
        assert_true(layers[i].n_rows > 0);
        mean.score_recall += layers[i].score_recall / 2;
        mean.block_recall += layers[i].block_recall / 2;
        mean.oracle_ratio += layers[i].oracle_ratio / 2;
    }
    assert_int_equal(layers[0].n_rows, -1);
    free(text);
    msa_free(tokens);
    msa_tokenizer_close(tokenizer);
    msa_model_close(model);
    return mean;
}

/* ---- the tests ----------------------------------------------------------------------------- */

static void test_warm_up_learns_where_to_look(void **state)
{
    (void)state;
    msa_convert_args args;
    msa_convert_args_init(&args);
    args.source_dir = dense;
    args.out_dir = converted;
    args.block_size = 16;
    args.topk_blocks = 4;
    EXPECT_OK(msa_convert(&args, NULL, NULL));
    msa_recall before = recall(converted);
    run_result r = train("warm-up", converted,
                         "{\"attention\": \"warmup\", \"freeze_backbone\": true, \"steps\": 50,"
                         " \"index_lr\": 3e-3}");
    msa_recall after = recall(r.folder);
    printf("index loss %.4f to %.4f, score recall %.3f to %.3f, oracle ratio %.3f to %.3f\n",
           r.first_index_loss, r.last_index_loss, before.score_recall, after.score_recall,
           before.oracle_ratio, after.oracle_ratio);
    assert_true(r.last_index_loss < 0.8 * r.first_index_loss);
    assert_true(after.score_recall > before.score_recall);
    assert_true(after.oracle_ratio > before.oracle_ratio);

    tensor_set source = tensors_read(converted), target = tensors_read(r.folder);
    int64_t n_changed = 0;
    for (int64_t i = 0; i < source.n; i++) {
        const named_tensor *a = &source.items[i], *b = tensors_find(&target, a->name);
        int same = a->bytes == b->bytes && !memcmp(a->data, b->data, a->bytes);
        if (!strstr(a->name, "index_")) {
            if (!same) fail_msg("%s has changed in the warm-up", a->name);
        } else {
            n_changed += !same;
        }
    }
    assert_true(n_changed > 0);
    tensors_free(&source);
    tensors_free(&target);

    run_result sparse = train("sparse", r.folder, "{\"attention\": \"sparse\", \"steps\": 12,"
                                                  " \"lr\": 1e-3, \"index_lr\": 1e-3}");
    assert_true(sparse.last_loss < sparse.first_loss);
}

/* ---- the scene ----------------------------------------------------------------------------- */

static int make_scene(void **state)
{
    (void)state;
    msa_context_args args;
    msa_context_args_init(&args);
    args.n_threads = 2;
    EXPECT_OK(msa_context_create(&ctx, &args));
    scene = folder_create();
    write_text(place("text.txt"), 1);
    write_text(place("valid.txt"), 2);
    const msa__preset preset = {.name = "dense",
                                .description = "",
                                .hidden_size = 64,
                                .n_layers = 3,
                                .n_full_layers = 3,
                                .n_dense_layers = 3,
                                .n_q_heads = 4,
                                .n_kv_heads = 2,
                                .head_dim = 32,
                                .block_size = 16,
                                .topk_blocks = 4,
                                .n_experts = 2,
                                .n_experts_per_token = 1,
                                .expert_width = 32,
                                .shared_width = 32,
                                .dense_width = 128,
                                .max_positions = 1024};
    snprintf(dense, sizeof(dense), "%s", place("random"));
    EXPECT_OK(msa__preset_make(dense, &preset, 3, NULL, NULL));
    run_result r = train("dense", dense, "{\"attention\": \"dense\", \"steps\": 40, \"lr\": 5e-3}");
    assert_true(r.last_loss < 0.8 * r.first_loss);
    snprintf(dense, sizeof(dense), "%s", r.folder);
    snprintf(converted, sizeof(converted), "%s", place("converted"));
    return 0;
}

static int remove_scene(void **state)
{
    (void)state;
    char command[400];
    msa_context_destroy(ctx);
    snprintf(command, sizeof(command), "rm -r '%s'", scene.dir);
    return system(command);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_warm_up_learns_where_to_look),
    };
    return cmocka_run_group_tests(tests, make_scene, remove_scene);
}
