/* Evaluation: how well a model answers from long texts, how well it predicts them, position by
 * position, and what its selection captures. docs/evaluation.md says exactly what is measured.
 *
 * Answers are decoded greedily, one sample at a time, so a result depends on the model, the
 * engine's dtypes and attention, and the arguments: nothing else.
 */
#ifndef MSA_EVAL_H
#define MSA_EVAL_H

#include "msa/engine.h"
#include "msa/tasks.h"
#include "msa/train.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A file of tasks in RULER's format: a JSON object a line with "input" and "outputs". */
typedef struct msa_ruler_file msa_ruler_file;

/* Read and check every line, and count its tokens.
 *
 * Ownership *out is owned: msa_ruler_close
 * Errors    MSA_EIO; MSA_EFORMAT file, line, key, value and rule; MSA_ENOMEM
 */
MSA_API MSA_CHECK_RESULT msa_status msa_ruler_open(msa_ruler_file **out, const char *path,
                                                   const msa_tokenizer *tokenizer);
MSA_API void msa_ruler_close(msa_ruler_file *file); /* NULL is allowed */

typedef struct msa_ruler_info {
    uint32_t struct_size;
    uint32_t flags;
    int64_t n_samples;
    int64_t max_tokens; /* longest prompt with its answer: what the engine needs room for */
} msa_ruler_info;
MSA_ARGS_INIT(msa_ruler_info)
MSA_API MSA_CHECK_RESULT msa_status msa_ruler_get_info(const msa_ruler_file *file,
                                                       msa_ruler_info *info);

/* Read a .txt file, or all .txt files of a folder in the order of their names with an empty line
 * between them.
 *
 * Ownership *text is owned: msa_free
 * Errors    MSA_EIO; MSA_EFORMAT no such files, or not UTF-8: file and byte; MSA_ENOMEM
 */
MSA_API MSA_CHECK_RESULT msa_status msa_eval_read_text(char **text, size_t *text_bytes,
                                                       const char *path);

typedef struct msa_eval_args {
    uint32_t struct_size;
    uint32_t flags;
    msa_engine *engine; /* room for one session of length tokens */
    const msa_tokenizer *tokenizer;
    const int32_t *stop_tokens; /* [n_stop_tokens] an answer ends there, or at a line break */
    int32_t n_stop_tokens;
    int32_t scan8; /* msa_eval_recall: 1: look at eight-bit index keys too */
    const char *task;      /* msa_eval_task: a name from msa_task_name */
    int64_t length, count; /* tokens a sample; samples. Of a RULER file 0, 0: all */
    uint64_t seed;
    const char *text; /* UTF-8: filler of tasks, or what is predicted; NULL: made-up sentences */
    size_t text_bytes;
    /* Tokens read; may be NULL. Non-zero stops the evaluation: MSA_ECANCELED */
    msa_prefill_progress_fn progress;
    void *user;
} msa_eval_args;
MSA_ARGS_INIT(msa_eval_args)

/* A part of the result: of the references whose needle begins at depth [from, to), or of the tokens
 * that have [from, to) tokens before them. */
typedef struct msa_eval_bin {
    double from, to;
    int64_t count;
    double accuracy;
    double loss; /* nats a token; 0 for tasks */
} msa_eval_bin;

#define MSA_EVAL_MAX_BINS 32

typedef struct msa_eval_result {
    uint32_t struct_size;
    uint32_t flags;
    int64_t count;   /* samples */
    int64_t length;  /* of a RULER file: tokens of its longest sample */
    double accuracy; /* 0..1: mean score; of predicted text the share of tokens ranked first */
    double loss;     /* nats a token, and exp of it; 0 for tasks */
    double perplexity;
    int64_t read_tokens, generated_tokens;
    double read_seconds, generate_seconds;
    int32_t n_bins; /* tasks without needles have none; empty ones are left out */
    int32_t reserved;
    msa_eval_bin bins[MSA_EVAL_MAX_BINS];
    msa_recall recall; /* of msa_eval_recall: over all layers; zero elsewhere */
} msa_eval_result;
MSA_ARGS_INIT(msa_eval_result)

/* Ask `count` samples of a generated task, indices 0..count-1.
 *
 * Errors    MSA_EINVAL argument, value and rule; what msa_task_make and the engine return
 */
MSA_API MSA_CHECK_RESULT msa_status msa_eval_task(msa_eval_result *result,
                                                  const msa_eval_args *args);

/* Ask the samples of a RULER file; task, seed and text have no meaning here. */
MSA_API MSA_CHECK_RESULT msa_status msa_eval_ruler(msa_eval_result *result,
                                                   const msa_eval_args *args,
                                                   const msa_ruler_file *file);

/* Compare the selection of every MSA layer with full attention, over the windows that
 * msa_eval_perplexity predicts. The engine says dtype and attention; accuracy is the block recall.
 *
 * model     the engine's
 * layers    [n_layers] out: means over all windows, as msa_recall_measure writes them
 * Errors    as msa_eval_perplexity; what msa_recall_measure returns
 */
MSA_API MSA_CHECK_RESULT msa_status msa_eval_recall(msa_eval_result *result, msa_recall *layers,
                                                    msa_model *model, const msa_eval_args *args);

/* Predict `count` windows of `length` tokens, spread evenly over the text's tokens: the first
 * begins with the text, the last ends with it. Bins are powers of two.
 *
 * Errors    MSA_EINVAL also a text of fewer than length tokens; else as msa_eval_task
 */
MSA_API MSA_CHECK_RESULT msa_status msa_eval_perplexity(msa_eval_result *result,
                                                        const msa_eval_args *args);

#ifdef __cplusplus
}
#endif
#endif
