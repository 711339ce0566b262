/* Tables of the configuration's keys, defaults, and what must fit together; see train_config.h. */
#include "train/train_config.h"

#include "base/error.h"
#include "train/train_keys.h"

#include <math.h>
#include <stddef.h>
#include <string.h>

#define MANY 9e15

#define OF(member)    offsetof(msa__train_config, member)
#define STAGE(member) offsetof(msa__stage, member)

/* Keys of a stage may also stand in "defaults", for all stages. */
#define STAGE_KEYS                                                                                 \
    {.name = "attention",                                                                          \
     .kind = MSA__KEY_WORD,                                                                        \
     .offset = STAGE(attention),                                                                   \
     .words = "dense|warmup|sparse"},                                                              \
        {.name = "freeze_backbone", .kind = MSA__KEY_FLAG, .offset = STAGE(freeze_backbone)},      \
        {.name = "step_tokens",                                                                    \
         .kind = MSA__KEY_COUNT,                                                                   \
         .offset = STAGE(step_tokens),                                                             \
         .low = 1,                                                                                 \
         .high = 1 << 30},                                                                         \
        {.name = "micro_tokens",                                                                   \
         .kind = MSA__KEY_COUNT,                                                                   \
         .offset = STAGE(micro_tokens),                                                            \
         .low = 1,                                                                                 \
         .high = 1 << 30},                                                                         \
        {.name = "length",                                                                         \
         .kind = MSA__KEY_COUNT,                                                                   \
         .offset = STAGE(length),                                                                  \
         .low = 2,                                                                                 \
         .high = 1 << 30},                                                                         \
        {.name = "lr", .kind = MSA__KEY_NUMBER, .offset = STAGE(lr), .low = 0, .high = 10},        \
        {.name = "index_lr",                                                                       \
         .kind = MSA__KEY_NUMBER,                                                                  \
         .offset = STAGE(index_lr),                                                                \
         .low = 0,                                                                                 \
         .high = 10},                                                                              \
        {.name = "schedule",                                                                       \
         .kind = MSA__KEY_WORD,                                                                    \
         .offset = STAGE(schedule),                                                                \
         .words = "cosine|wsd|constant"},                                                          \
        {.name = "warmup_steps",                                                                   \
         .kind = MSA__KEY_COUNT,                                                                   \
         .offset = STAGE(warmup_steps),                                                            \
         .low = 0,                                                                                 \
         .high = MANY},                                                                            \
        {.name = "final_lr",                                                                       \
         .kind = MSA__KEY_NUMBER,                                                                  \
         .offset = STAGE(final_lr),                                                                \
         .low = 0,                                                                                 \
         .high = 1},                                                                               \
    {                                                                                              \
        .name = "decay_part", .kind = MSA__KEY_NUMBER, .offset = STAGE(decay_part), .low = 0,      \
        .high = 1                                                                                  \
    }

static const msa__key default_keys[] = {STAGE_KEYS, {0}};

static const msa__key stage_keys[] = {
    {.name = "name", .kind = MSA__KEY_TEXT, .offset = STAGE(name)},
    {.name = "steps", .kind = MSA__KEY_COUNT, .offset = STAGE(steps), .low = 1, .high = MANY},
    {.name = "tokens", .kind = MSA__KEY_COUNT, .offset = STAGE(tokens), .low = 1, .high = MANY},
    {.name = "gate", .kind = MSA__KEY_NUMBER, .offset = STAGE(gate), .low = 0, .high = 1},
    STAGE_KEYS,
    {0}};

static const msa__key model_keys[] = {
    {.name = "config", .kind = MSA__KEY_OBJECT, .offset = OF(model_config)},
    {.name = "init_from", .kind = MSA__KEY_TEXT, .offset = OF(init_from)},
    {.name = "init_spread",
     .kind = MSA__KEY_NUMBER,
     .offset = OF(init_spread),
     .low = 0,
     .high = 10},
    {0}};

static const msa__key validation_keys[] = {
    {.name = "data", .kind = MSA__KEY_OBJECT, .offset = OF(validation_data)},
    {.name = "every",
     .kind = MSA__KEY_COUNT,
     .offset = OF(validation_every),
     .low = 1,
     .high = MANY},
    {.name = "batches",
     .kind = MSA__KEY_COUNT,
     .offset = OF(validation_batches),
     .low = 1,
     .high = 1 << 20},
    {.name = "recall", .kind = MSA__KEY_FLAG, .offset = OF(recall)},
    {0}};

static const msa__key optimizer_keys[] = {
    {.name = "beta1", .kind = MSA__KEY_NUMBER, .offset = OF(adamw.beta1), .low = 0, .high = 0.9999},
    {.name = "beta2",
     .kind = MSA__KEY_NUMBER,
     .offset = OF(adamw.beta2),
     .low = 0,
     .high = 0.99999},
    {.name = "eps", .kind = MSA__KEY_NUMBER, .offset = OF(adamw.eps), .low = 1e-20, .high = 1},
    {.name = "weight_decay",
     .kind = MSA__KEY_NUMBER,
     .offset = OF(adamw.weight_decay),
     .low = 0,
     .high = 10},
    {.name = "clip", .kind = MSA__KEY_NUMBER, .offset = OF(adamw.clip), .low = 0, .high = 1e30},
    {.name = "index_clip",
     .kind = MSA__KEY_NUMBER,
     .offset = OF(adamw.index_clip),
     .low = 0,
     .high = 1e30},
    {.name = "max_skipped",
     .kind = MSA__KEY_COUNT,
     .offset = OF(max_skipped),
     .low = 0,
     .high = MANY},
    {0}};

static const msa__key index_loss_keys[] = {
    {.name = "lambda", .kind = MSA__KEY_NUMBER, .offset = OF(index_lambda), .low = 0, .high = 1e6},
    {.name = "over_layers", .kind = MSA__KEY_WORD, .offset = OF(index_mean), .words = "sum|mean"},
    {.name = "detach", .kind = MSA__KEY_FLAG, .offset = OF(index_detach)},
    {0}};

static const msa__key router_keys[] = {
    {.name = "bias_rate", .kind = MSA__KEY_NUMBER, .offset = OF(bias_rate), .low = 0, .high = 1},
    {0}};

static const msa__key checkpoint_keys[] = {{.name = "every",
                                            .kind = MSA__KEY_COUNT,
                                            .offset = OF(checkpoint_every),
                                            .low = 1,
                                            .high = MANY},
                                           {.name = "keep",
                                            .kind = MSA__KEY_COUNT,
                                            .offset = OF(checkpoints_kept),
                                            .low = 1,
                                            .high = 1 << 20},
                                           {0}};

static const msa__key log_keys[] = {
    {.name = "every", .kind = MSA__KEY_COUNT, .offset = OF(log_every), .low = 1, .high = MANY},
    {.name = "peak_tflops",
     .kind = MSA__KEY_NUMBER,
     .offset = OF(peak_tflops),
     .low = 0,
     .high = 1e9},
    {0}};

typedef struct top_level {
    msa__train_config config; /* first: tables of parts write into it */
    const msa__json *defaults, *stages;
} top_level;

#define TOP(member) offsetof(top_level, member)

static const msa__key top_keys[] = {
    {.name = "output", .kind = MSA__KEY_TEXT, .offset = OF(output)},
    {.name = "seed", .kind = MSA__KEY_COUNT, .offset = OF(seed), .low = 0, .high = MANY},
    {.name = "dtype", .kind = MSA__KEY_WORD, .offset = OF(dtype), .words = "f32|bf16"},
    {.name = "activations", .kind = MSA__KEY_WORD, .offset = OF(keep), .words = "recompute|keep"},
    {.name = "model", .kind = MSA__KEY_TABLE, .table = model_keys},
    {.name = "data", .kind = MSA__KEY_OBJECT, .offset = OF(data)},
    {.name = "validation", .kind = MSA__KEY_TABLE, .table = validation_keys},
    {.name = "optimizer", .kind = MSA__KEY_TABLE, .table = optimizer_keys},
    {.name = "index_loss", .kind = MSA__KEY_TABLE, .table = index_loss_keys},
    {.name = "router", .kind = MSA__KEY_TABLE, .table = router_keys},
    {.name = "checkpoint", .kind = MSA__KEY_TABLE, .table = checkpoint_keys},
    {.name = "log", .kind = MSA__KEY_TABLE, .table = log_keys},
    {.name = "defaults", .kind = MSA__KEY_OBJECT, .offset = TOP(defaults)},
    {.name = "stages", .kind = MSA__KEY_LIST, .offset = TOP(stages)},
    {0}};

/* ---- defaults and rules ------------------------------------------------------------------- */

static void set_defaults(msa__train_config *c)
{
    c->dtype = MSA_DTYPE_BF16;
    c->keep = 1; /* the word "keep" */
    c->init_spread = 0.02;
    c->validation_every = 100;
    c->validation_batches = 4;
    c->recall = 1;
    c->adamw = (msa__adamw){
        .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .weight_decay = 0.1, .clip = 1, .index_clip = 1};
    c->max_skipped = 5;
    c->index_lambda = 1;
    c->index_detach = 1;
    c->checkpoint_every = 500;
    c->checkpoints_kept = 2;
    c->log_every = 1;
}

static const msa__stage stage_defaults = {.name = NULL,
                                          .attention = MSA__PHASE_DENSE,
                                          .step_tokens = 65536,
                                          .micro_tokens = 8192,
                                          .length = 8192,
                                          .lr = 3e-4,
                                          .index_lr = 1e-3,
                                          .schedule = MSA__SCHEDULE_COSINE,
                                          .final_lr = 0.1,
                                          .decay_part = 0.2};

static msa_status finish_stage(const msa__json *object, const msa__train_config *c, msa__stage *s)
{
    static const char *const phases[] = {"dense", "warmup", "sparse"};
    if (!s->name) s->name = phases[s->attention];
    if (!s->steps == !s->tokens) {
        return msa__json_fail(object, MSA_EFORMAT, "must have steps or tokens, not both");
    }
    if (s->step_tokens % s->micro_tokens != 0) {
        return msa__json_fail(object, MSA_EFORMAT,
                              "step_tokens = %lld, must be a multiple of micro_tokens = %lld",
                              (long long)s->step_tokens, (long long)s->micro_tokens);
    }
    if (s->micro_tokens % s->length != 0) {
        return msa__json_fail(object, MSA_EFORMAT,
                              "micro_tokens = %lld, must be a multiple of length = %lld",
                              (long long)s->micro_tokens, (long long)s->length);
    }
    if (s->freeze_backbone && s->attention == MSA__PHASE_DENSE) {
        return msa__json_fail(object, MSA_EFORMAT,
                              "freeze_backbone = true, must be false with attention \"dense\": "
                              "nothing would learn");
    }
    if (s->gate > 0 && (s->attention == MSA__PHASE_DENSE || !c->validation_data || !c->recall)) {
        return msa__json_fail(object, MSA_EFORMAT,
                              "gate = %g, needs attention \"warmup\" or \"sparse\" and validation "
                              "data with recall",
                              s->gate);
    }
    if (!s->steps) s->steps = (s->tokens + s->step_tokens - 1) / s->step_tokens;
    s->tokens = s->steps * s->step_tokens;
    if (s->warmup_steps <= s->steps) return MSA_OK;
    return msa__json_fail(object, MSA_EFORMAT, "warmup_steps = %lld, must be at most %lld steps",
                          (long long)s->warmup_steps, (long long)s->steps);
}

static msa_status read_stages(msa__train_config *c, const top_level *top)
{
    msa__stage defaults = stage_defaults;
    if (top->defaults) MSA_TRY(msa__keys_read(top->defaults, default_keys, &defaults));
    if (top->stages->n_children < 1 || top->stages->n_children > MSA__MAX_STAGES) {
        return msa__json_fail(top->stages, MSA_EFORMAT, "must have 1..%d stages", MSA__MAX_STAGES);
    }
    MSA__JSON_EACH(object, top->stages)
    {
        msa__stage *stage = &c->stages[c->n_stages++];
        *stage = defaults;
        MSA_TRY(msa__keys_read(object, stage_keys, stage));
        MSA_TRY(finish_stage(object, c, stage));
    }
    return MSA_OK;
}

static msa_status need(const msa__json *root, const char *key, const void *value)
{
    const msa__json *absent;
    return value ? MSA_OK : msa__json_need(root, key, &absent);
}

static msa_status read_all(msa__train_config *c)
{
    top_level top = {.config = *c};
    MSA_TRY(msa__keys_read(c->root, top_keys, &top));
    *c = top.config;
    MSA_TRY(need(c->root, "output", c->output));
    MSA_TRY(need(c->root, "data", c->data));
    MSA_TRY(need(c->root, "stages", top.stages));
    if (!c->model_config && !c->init_from) {
        return MSA_FAIL(MSA_EFORMAT, "train: model must have config or init_from");
    }
    const msa__json *tokenizer;
    MSA_TRY(msa__json_need(c->data, "tokenizer", &tokenizer));
    MSA_TRY(msa__json_string(tokenizer, &c->tokenizer));
    c->keep = c->keep ? MSA__KEEP_ALL : MSA__KEEP_RESIDUAL;
    return read_stages(c, &top);
}

msa_status msa__train_config_parse(msa__train_config *c, const char *name, const char *text,
                                   size_t bytes)
{
    memset(c, 0, sizeof(*c));
    set_defaults(c);
    MSA_TRY(msa__json_parse(&c->root, NULL, name, text, bytes));
    msa_status status = read_all(c);
    if (status != MSA_OK) msa__train_config_free(c);
    return status;
}

void msa__train_config_free(msa__train_config *c)
{
    msa__json_free(c->root);
    memset(c, 0, sizeof(*c));
}

/* ---- schedules ---------------------------------------------------------------------------- */

double msa__schedule_share(const msa__stage *s, int64_t step)
{
    const double pi = 3.14159265358979323846;
    if (step < s->warmup_steps) return (double)(step + 1) / (double)s->warmup_steps;
    double begin = (double)s->warmup_steps, end = (double)s->steps;
    if (s->schedule == MSA__SCHEDULE_CONSTANT) return 1;
    if (s->schedule == MSA__SCHEDULE_WSD) {
        double decay = s->decay_part * end;
        if (end - decay > begin) begin = end - decay;
    }
    if ((double)step <= begin || end <= begin) return 1;
    double part = ((double)step - begin) / (end - begin);
    double share = s->schedule == MSA__SCHEDULE_WSD ? 1 - part : 0.5 * (1 + cos(pi * part));
    return s->final_lr + (1 - s->final_lr) * share;
}
