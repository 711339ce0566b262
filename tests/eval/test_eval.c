/* Evaluations of a made model: answers are the greedy ones and are scored as they should be, losses
 * are those of the logits, and the caller can stop. */
#include "golden/run.h"
#include "harness/cmocka_all.h"
#include "model/folder.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#define MAX_TOKENS 1500

static folder model_folder, files;
static subject model;
static msa_tokenizer *tokenizer;
static msa_engine *engine;

static int open_model(void **state)
{
    (void)state;
    model_folder = folder_create();
    files = folder_create();
    EXPECT_OK(msa_model_make(model_folder.dir, "tiny", 1, NULL, NULL));
    subject_open(&model, model_folder.dir, "cpu", NULL, 1);
    EXPECT_OK(msa_tokenizer_open(&tokenizer, model_folder.dir));
    engine =
        engine_make(&model, MSA_DTYPE_F32, MSA_DTYPE_F32, MAX_TOKENS, 256, 1, MSA_ATTENTION_SPARSE);
    return 0;
}

static int close_model(void **state)
{
    (void)state;
    msa_engine_destroy(engine);
    msa_tokenizer_close(tokenizer);
    subject_close(&model);
    folder_remove(&files);
    folder_remove(&model_folder);
    return 0;
}

static msa_eval_args eval_args(const char *task, int64_t length, int64_t count)
{
    msa_eval_args args;
    msa_eval_args_init(&args);
    args.engine = engine;
    args.tokenizer = tokenizer;
    args.task = task;
    args.length = length;
    args.count = count;
    args.seed = 3;
    return args;
}

/* ---- answers ------------------------------------------------------------------------------ */

/* What the model says greedily after a prompt; *first is its first token. */
static char *continuation(const char *prompt, int32_t n_tokens, int32_t *first)
{
    int32_t *tokens;
    size_t n, used = 0;
    char *said = calloc(1, (size_t)n_tokens * 64);
    msa_session *session;
    EXPECT_OK(msa_tokenizer_encode(tokenizer, prompt, strlen(prompt), &tokens, &n));
    EXPECT_OK(msa_session_create(&session, engine));
    EXPECT_OK(msa_session_prefill(session, tokens, (int64_t)n, NULL, NULL));
    for (int32_t i = 0; i < n_tokens; i++) {
        const float *logits = msa_session_logits(session);
        int32_t best = 0;
        char *text;
        for (int32_t j = 1; j < model.info.vocab_size; j++) {
            if (logits[j] > logits[best]) best = j;
        }
        if (i == 0) *first = best;
        if (msa_tokenizer_decode(tokenizer, &best, 1, &text, &n) == MSA_OK) {
            assert_true(n < 64);
            for (size_t j = 0; j < n; j++) said[used++] = text[j] ? text[j] : ' ';
            msa_free(text);
        }
        msa_batch_item item = {.session = session, .tokens = &best, .n_tokens = 1};
        EXPECT_OK(msa_engine_forward(engine, &item, 1, NULL));
    }
    msa_session_destroy(session);
    msa_free(tokens);
    return said;
}

/* A letter or digit run out of a text that JSON needs no escapes for. */
static void find_word(const char *text, char word[16])
{
    size_t best = 0;
    for (size_t i = 0; text[i]; i++) {
        size_t n =
            strspn(text + i, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_0123456789");
        if (n > 15) n = 15;
        if (n <= best) continue;
        best = n;
        snprintf(word, 16, "%.*s", (int)n, text + i);
    }
    assert_true(best > 0);
}

static msa_ruler_file *open_lines(const char *lines)
{
    msa_ruler_file *file;
    folder_write(&files, "samples.jsonl", lines, strlen(lines));
    EXPECT_OK(msa_ruler_open(&file, folder_path(&files, "samples.jsonl"), tokenizer));
    return file;
}

/* A word that the model will say scores 1, another one 0: the whole way from file to score. */
static void test_ruler_scores(void **state)
{
    (void)state;
    const char *prompt = "The kettle is warm. What is it?";
    int32_t first;
    char word[16], lines[1024];
    char *said = continuation(prompt, 128, &first);
    find_word(said, word);
    snprintf(lines, sizeof(lines),
             "{\"input\": \"%s\", \"outputs\": [\"%s\"]}\n"
             "{\"input\": \"%s\", \"outputs\": [\"%s\", \"never said\"]}\n"
             "{\"input\": \"%.10s\", \"answer_prefix\": \"%s\", \"outputs\": [\"never said\"]}\n"
             "{\"input\": \"%s\", \"outputs\": [\"never said\"], \"task\": \"qa_1\"}\n",
             prompt, word, prompt, word, prompt, prompt + 10, prompt);
    msa_ruler_file *file = open_lines(lines);
    msa_eval_result result;
    for (int64_t count = 1; count <= 4; count++) {
        const double sums[] = {1, 1.5, 1.5, 1.5};
        msa_eval_args args = eval_args(NULL, 0, count);
        EXPECT_OK(msa_eval_ruler(&result, &args, file));
        assert_int_equal(result.count, count);
        assert_true(result.accuracy == sums[count - 1] / (double)count);
    }
    assert_int_equal(result.generated_tokens, 3 * 128 + 32);
    assert_true(result.read_seconds > 0 && result.generate_seconds > 0);

    /* It ends at a stop token, which is no part of the answer. */
    msa_eval_args args = eval_args(NULL, 0, 0);
    args.stop_tokens = &first;
    args.n_stop_tokens = 1;
    EXPECT_OK(msa_eval_ruler(&result, &args, file));
    assert_int_equal(result.count, 4);
    assert_int_equal(result.generated_tokens, 0);
    assert_true(result.accuracy == 0);
    msa_ruler_close(file);
    free(said);
}

/* Every reference has its depth; the counts add up. */
static void test_generated_tasks(void **state)
{
    (void)state;
    static const struct {
        const char *task;
        int64_t n_references;
    } cases[] = {{"multi-query", 4}, {"variable-tracking", 5}, {"passkey", 1}, {"common-words", 0}};
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        msa_eval_args args = eval_args(cases[i].task, 1200, 2);
        msa_eval_result result;
        int64_t n = 0;
        EXPECT_OK(msa_eval_task(&result, &args));
        assert_int_equal(result.count, 2);
        assert_int_equal(result.length, 1200);
        assert_true(result.read_tokens > 2 * 800 && result.read_tokens <= 2 * 1200);
        assert_true(result.accuracy >= 0 && result.accuracy <= 1);
        for (int32_t j = 0; j < result.n_bins; j++) {
            assert_true(result.bins[j].from < result.bins[j].to);
            n += result.bins[j].count;
        }
        assert_int_equal(n, 2 * cases[i].n_references);
    }
}

/* ---- perplexity --------------------------------------------------------------------------- */

static const char text[] =
    "Dense attention reads every key. Sparse attention reads a few blocks of them, those that an "
    "index says are worth it. The rest of the keys stay where they are. What is lost by that, and "
    "where, is what this text is measured for; it says so once, and it says nothing else.";

/* Losses of a window from one forward pass, in double. */
static void add_losses(const int32_t *tokens, int64_t n, double *loss, int64_t *hits)
{
    int64_t vocab = model.info.vocab_size;
    float *logits = malloc((size_t)(n * vocab) * sizeof(*logits));
    msa_session *session;
    EXPECT_OK(msa_session_create(&session, engine));
    msa_batch_item item = {
        .session = session, .tokens = tokens, .n_tokens = n, .logits = logits, .all_logits = 1};
    EXPECT_OK(msa_engine_forward(engine, &item, 1, NULL));
    for (int64_t t = 0; t + 1 < n; t++) {
        const float *row = logits + t * vocab;
        double sum = 0;
        int hit = 1;
        for (int64_t j = 0; j < vocab; j++) {
            sum += exp((double)row[j] - (double)row[tokens[t + 1]]);
            hit &= row[j] <= row[tokens[t + 1]];
        }
        *loss += log(sum);
        *hits += hit;
    }
    msa_session_destroy(session);
    free(logits);
}

static void test_perplexity(void **state)
{
    (void)state;
    enum { LENGTH = 100 };
    int32_t *tokens;
    size_t n_tokens;
    msa_eval_result result;
    double loss = 0, bins_loss = 0;
    int64_t hits = 0, bins_count = 0;
    msa_eval_args args = eval_args(NULL, LENGTH, 3);
    args.text = text;
    args.text_bytes = strlen(text);
    EXPECT_OK(msa_tokenizer_encode(tokenizer, text, strlen(text), &tokens, &n_tokens));
    size_t last = n_tokens - LENGTH;
    add_losses(tokens, LENGTH, &loss, &hits);
    add_losses(tokens + last / 2, LENGTH, &loss, &hits);
    add_losses(tokens + last, LENGTH, &loss, &hits);
    EXPECT_OK(msa_eval_perplexity(&result, &args));
    assert_true(fabs(result.loss - loss / (3 * (LENGTH - 1))) < 1e-4);
    assert_true(fabs(result.perplexity - exp(result.loss)) < 1e-9 * result.perplexity);
    assert_true(result.accuracy == (double)hits / (3 * (LENGTH - 1)));
    assert_int_equal(result.n_bins, 7); /* 1, 2-3, … 64-99 */
    for (int32_t k = 0; k < result.n_bins; k++) {
        const msa_eval_bin *bin = &result.bins[k];
        assert_true(bin->from == ldexp(1, k) && bin->to == ldexp(1, k + 1));
        assert_int_equal(bin->count, k == 6 ? 3 * 36 : 3 << k);
        bins_loss += bin->loss * (double)bin->count;
        bins_count += bin->count;
    }
    assert_int_equal(bins_count, 3 * (LENGTH - 1));
    assert_true(fabs(bins_loss / (double)bins_count - result.loss) < 1e-9);
    msa_free(tokens);
}

static void test_text_too_short(void **state)
{
    (void)state;
    msa_eval_result result;
    msa_eval_args args = eval_args(NULL, 1000, 1);
    args.text = text;
    args.text_bytes = strlen(text);
    EXPECT_FAIL(MSA_EINVAL, "length = 1000, the text has only ",
                msa_eval_perplexity(&result, &args));
    args.text_bytes = 0;
    EXPECT_FAIL(MSA_EINVAL, "the text has only 0 tokens", msa_eval_perplexity(&result, &args));
}

/* Without a text the sentences that tasks make up are predicted; the seed decides them. */
static void test_made_up_text(void **state)
{
    (void)state;
    msa_eval_result first, again, other;
    msa_eval_args args = eval_args(NULL, 64, 2);
    EXPECT_OK(msa_eval_perplexity(&first, &args));
    EXPECT_OK(msa_eval_perplexity(&again, &args));
    args.seed++;
    EXPECT_OK(msa_eval_perplexity(&other, &args));
    assert_int_equal(first.read_tokens, 2 * 63);
    assert_true(first.loss == again.loss && first.loss != other.loss);
}

/* ---- recall ------------------------------------------------------------------------------- */

/* Two windows are their two measurements, each with the weight of its rows. The reference backend
 * has every operator that this takes. */
static void test_recall(void **state)
{
    (void)state;
    enum { LENGTH = 120, MAX_LAYERS = 8 };
    int32_t *tokens;
    size_t n_tokens;
    subject ref;
    msa_recall layers[MAX_LAYERS], windows[2][MAX_LAYERS];
    msa_eval_result result;
    msa_eval_args args = eval_args(NULL, LENGTH, 2);
    subject_open(&ref, model_folder.dir, "ref", NULL, 1);
    assert_in_range(ref.info.n_layers, 2, MAX_LAYERS);
    args.engine =
        engine_make(&ref, MSA_DTYPE_F32, MSA_DTYPE_F32, LENGTH, 64, 1, MSA_ATTENTION_SPARSE);
    args.text = text;
    args.text_bytes = strlen(text);
    EXPECT_OK(msa_eval_recall(&result, layers, ref.model, &args));
    EXPECT_OK(msa_tokenizer_encode(tokenizer, text, strlen(text), &tokens, &n_tokens));
    for (size_t w = 0; w < 2; w++) {
        msa_recall_args recall;
        msa_recall_args_init(&recall);
        recall.model = ref.model;
        recall.tokens = tokens + w * (n_tokens - LENGTH);
        recall.n_tokens = LENGTH;
        recall.dtype = MSA_DTYPE_F32;
        recall.layers = windows[w];
        EXPECT_OK(msa_recall_measure(&recall));
    }
    double sum = 0;
    int64_t n_rows = 0;
    for (int32_t i = 0; i < ref.info.n_layers; i++) {
        const msa_recall *a = &windows[0][i], *b = &windows[1][i];
        assert_int_equal(layers[i].n_rows, a->n_rows < 0 ? -1 : a->n_rows + b->n_rows);
        if (a->n_rows < 0) continue;
        assert_true(a->n_rows > 0 && a->n_rows == b->n_rows);
        assert_true(fabs(layers[i].block_recall - (a->block_recall + b->block_recall) / 2) < 1e-12);
        assert_true(fabs(layers[i].captured_mass - (a->captured_mass + b->captured_mass) / 2) <
                    1e-12);
        sum += layers[i].block_recall * (double)layers[i].n_rows;
        n_rows += layers[i].n_rows;
    }
    assert_int_equal(result.recall.n_rows, n_rows);
    assert_true(fabs(result.accuracy - sum / (double)n_rows) < 1e-12);
    assert_true(result.accuracy == result.recall.block_recall);
    EXPECT_FAIL(MSA_EINVAL, "layers and model", msa_eval_recall(&result, NULL, ref.model, &args));
    msa_free(tokens);
    msa_engine_destroy(args.engine);
    subject_close(&ref);
}

/* ---- everything else ---------------------------------------------------------------------- */

static int32_t stop_after(void *user, int64_t done, int64_t total)
{
    int32_t *calls = user;
    assert_true(done <= total);
    return --*calls < 0;
}

static void test_caller_stops(void **state)
{
    (void)state;
    for (int32_t allowed = 0; allowed < 3; allowed++) {
        msa_eval_result result;
        int32_t calls = allowed;
        msa_eval_args args = eval_args("passkey", 800, 2);
        args.text = text;
        args.text_bytes = strlen(text);
        args.progress = stop_after;
        args.user = &calls;
        assert_int_equal(msa_eval_task(&result, &args), MSA_ECANCELED);
        calls = allowed;
        args.length = 100;
        args.count = 9;
        assert_int_equal(msa_eval_perplexity(&result, &args), MSA_ECANCELED);
    }
}

static void test_wrong_arguments(void **state)
{
    (void)state;
    msa_eval_result result;
    msa_eval_args args = eval_args("nothing", 800, 1);
    EXPECT_FAIL(MSA_EINVAL, "task = \"nothing\"", msa_eval_task(&result, &args));
    args.task = "passkey";
    args.count = 0;
    EXPECT_FAIL(MSA_EINVAL, "count = 0", msa_eval_task(&result, &args));
    args.count = 1;
    args.length = 1;
    EXPECT_FAIL(MSA_EINVAL, "length = 1", msa_eval_task(&result, &args));
    args.length = 2 * MAX_TOKENS;
    assert_int_equal(msa_eval_task(&result, &args), MSA_EBUSY); /* the engine has no room */
    args.n_stop_tokens = 1;
    EXPECT_FAIL(MSA_EINVAL, "n_stop_tokens = 1", msa_eval_task(&result, &args));
    args.tokenizer = NULL;
    EXPECT_FAIL(MSA_EINVAL, "tokenizer = NULL", msa_eval_task(&result, &args));
    args.engine = NULL;
    EXPECT_FAIL(MSA_EINVAL, "engine = NULL", msa_eval_task(&result, &args));
    EXPECT_FAIL(MSA_EINVAL, "file = NULL", msa_eval_ruler(&result, &args, NULL));
}

static void test_reading_text(void **state)
{
    (void)state;
    char *read;
    size_t bytes;
    folder f = folder_create();
    EXPECT_FAIL(MSA_EFORMAT, "*.txt", msa_eval_read_text(&read, &bytes, f.dir));
    folder_write(&f, "b.txt", "second", 6);
    folder_write(&f, "a.txt", "first", 5);
    folder_write(&f, "empty.txt", "", 0);
    folder_write(&f, "note.md", "not this", 8);
    EXPECT_OK(msa_eval_read_text(&read, &bytes, f.dir));
    assert_string_equal(read, "first\n\nsecond");
    assert_int_equal(bytes, 13);
    msa_free(read);
    EXPECT_OK(msa_eval_read_text(&read, &bytes, folder_path(&f, "note.md")));
    assert_string_equal(read, "not this");
    msa_free(read);
    folder_write(&f, "c.txt", "ab\xff", 3);
    EXPECT_FAIL(MSA_EFORMAT, "c.txt: byte 2, must be UTF-8",
                msa_eval_read_text(&read, &bytes, f.dir));
    EXPECT_FAIL(MSA_EIO, "none", msa_eval_read_text(&read, &bytes, folder_path(&f, "none")));
    folder_remove(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ruler_scores), cmocka_unit_test(test_generated_tasks),
        cmocka_unit_test(test_perplexity),   cmocka_unit_test(test_recall),
        cmocka_unit_test(test_made_up_text), cmocka_unit_test(test_text_too_short),
        cmocka_unit_test(test_caller_stops), cmocka_unit_test(test_wrong_arguments),
        cmocka_unit_test(test_reading_text),
    };
    return cmocka_run_group_tests(tests, open_model, close_model);
}
