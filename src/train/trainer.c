/* The public calls: a step, and what is due after it. */
#define _POSIX_C_SOURCE 200809L
#include "train/trainer.h"

#include "base/error.h"
#include "train/folders.h"
#include "train/trainer_open.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

/* ---- lifetime ----------------------------------------------------------------------------- */

msa_status msa_trainer_create(msa_trainer **out, msa_context *ctx, const msa_trainer_args *args)
{
    if (!out || !ctx || !args) {
        return MSA_FAIL(MSA_EINVAL, "trainer: %s = NULL, must be given",
                        !out   ? "out"
                        : !ctx ? "ctx"
                               : "args");
    }
    *out = NULL;
    if (args->struct_size != sizeof(*args)) {
        return MSA_FAIL(MSA_EINVAL,
                        "trainer: struct_size = %u, must be set by "
                        "msa_trainer_args_init",
                        args->struct_size);
    }
    msa_trainer *t = calloc(1, sizeof(*t));
    if (!t) return MSA_FAIL(MSA_ENOMEM, "trainer: no memory");
    t->ctx = ctx;
    msa_status status = msa__trainer_open(t, args);
    if (status != MSA_OK) {
        msa_trainer_destroy(t);
        return status;
    }
    *out = t;
    return MSA_OK;
}

void msa_trainer_destroy(msa_trainer *t)
{
    if (!t) return;
    msa__stage_close(t);
    msa__log_close(t->log);
    msa__optimizer_free(&t->optimizer);
    msa__parameters_free(&t->parameters);
    msa__dataset_close(t->validation);
    msa__dataset_close(t->data);
    msa__config_free(&t->model);
    msa__train_config_free(&t->config);
    msa_free(t->config_text);
    msa_free(t->training_text);
    free(t->index_loss);
    free(t->column);
    free(t->recall);
    free(t);
}

/* ---- a step ------------------------------------------------------------------------------- */

static double seconds(void)
{
    struct timespec now;
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

static msa_status log_step(msa_trainer *t, const msa__stage *stage)
{
    const msa_trainer_state *s = &t->state;
    int64_t n = 0;
    if (t->progress.step % t->config.log_every != 0 && !s->skipped) return MSA_OK;
    msa__log_begin(t->log, s->skipped ? "skipped" : "step", t->progress.step);
    msa__log_text(t->log, "stage", stage->name);
    msa__log_count(t->log, "tokens", t->progress.tokens);
    msa__log_number(t->log, "loss", s->loss);
    msa__log_number(t->log, "grad_norm", s->grad_norm);
    msa__log_number(t->log, "lr", s->lr);
    if (stage->attention != MSA__PHASE_DENSE) {
        for (int32_t layer = 0; layer < t->model.n_layers; layer++) {
            if (msa__walk_has_index(&t->walk, layer)) t->column[n++] = t->index_loss[layer];
        }
        msa__log_number(t->log, "index_loss", s->index_loss);
        msa__log_numbers(t->log, "index_loss_by_layer", t->column, n);
        msa__log_number(t->log, "index_grad_norm", s->index_grad_norm);
        msa__log_number(t->log, "index_lr", s->index_lr);
    }
    if (t->model.n_experts) msa__log_number(t->log, "worst_expert_load", t->worst_load);
    msa__log_number(t->log, "seconds", s->seconds);
    msa__log_number(t->log, "tokens_per_second", s->tokens_per_second);
    msa__log_number(t->log, "gflops", t->flops * 1e-9);
    if (t->config.peak_tflops > 0) {
        msa__log_number(t->log, "mfu", t->flops / s->seconds / (t->config.peak_tflops * 1e12));
    }
    return msa__log_end(t->log);
}

/* After the last step of a stage, or past its gate. */
static msa_status end_stage(msa_trainer *t, int32_t gate)
{
    msa__log_begin(t->log, "stage", t->progress.step);
    msa__log_text(t->log, "stage", msa__trainer_stage(t)->name);
    msa__log_count(t->log, "tokens", t->progress.tokens);
    msa__log_text(t->log, "ended_by", gate ? "gate" : "steps");
    msa__stage_close(t);
    t->progress.stage++;
    t->progress.stage_step = 0;
    t->progress.stage_tokens = t->progress.tokens;
    return msa__log_end(t->log);
}

static msa_status finish_step(msa_trainer *t)
{
    const msa__stage *stage = msa__trainer_stage(t);
    int32_t last = t->progress.stage_step >= stage->steps, gate = 0;
    MSA_TRY(log_step(t, stage));
    if (last || t->progress.step % t->config.validation_every == 0) {
        MSA_TRY(msa__validate(t));
        gate = t->validation && msa__gate_is_passed(t);
    }
    if (last || gate) MSA_TRY(end_stage(t, gate));
    int32_t done = t->progress.stage == t->config.n_stages;
    if (done || t->progress.step % t->config.checkpoint_every == 0) return msa_trainer_save(t);
    return MSA_OK;
}

msa_status msa_trainer_step(msa_trainer *t)
{
    if (!t) return MSA_FAIL(MSA_EINVAL, "trainer: trainer = NULL, must be given");
    t->state.saved = t->state.skipped = 0;
    if (t->progress.stage == t->config.n_stages) return MSA_OK;
    double begin = seconds();
    if (!t->stage_is_open) MSA_TRY(msa__stage_open(t));
    MSA_TRY(msa__step_run(t));
    t->state.seconds = seconds() - begin;
    t->state.tokens_per_second = (double)msa__trainer_stage(t)->step_tokens / t->state.seconds;
    return finish_step(t);
}

msa_status msa_trainer_save(msa_trainer *t)
{
    if (!t) return MSA_FAIL(MSA_EINVAL, "trainer: trainer = NULL, must be given");
    if (t->saved_step == t->progress.step) return MSA_OK;
    msa__snapshot snapshot = msa__trainer_snapshot(t);
    MSA_TRY(msa__snapshot_write(&snapshot));
    MSA_TRY(msa__folder_of_step(t->saved_folder, t->config.output, t->progress.step));
    t->saved_step = t->progress.step;
    t->state.saved = 1;
    MSA_TRY(msa__folder_prune(t->config.output, t->config.checkpoints_kept));
    return msa__curves_draw(t->config.output);
}

/* ---- where it is -------------------------------------------------------------------------- */

msa_status msa_trainer_get_state(const msa_trainer *t, msa_trainer_state *state)
{
    if (!t || !state || state->struct_size != sizeof(*state)) {
        return MSA_FAIL(MSA_EINVAL, "trainer: %s, must be %s", !t ? "trainer = NULL" : "state",
                        !t ? "given" : "set by msa_trainer_state_init");
    }
    const msa__progress *p = &t->progress;
    const msa__train_config *c = &t->config;
    *state = t->state;
    state->step = p->step;
    state->tokens = p->tokens;
    state->stage = (int32_t)p->stage;
    state->n_stages = c->n_stages;
    state->n_steps = p->step - p->stage_step;
    state->n_tokens = p->stage_tokens;
    for (int32_t i = (int32_t)p->stage; i < c->n_stages; i++) {
        state->n_steps += c->stages[i].steps;
        state->n_tokens += c->stages[i].tokens;
    }
    state->stage_name = p->stage < c->n_stages ? c->stages[p->stage].name : "done";
    state->folder = t->saved_step >= 0 ? t->saved_folder : NULL;
    return MSA_OK;
}
