/* One training step: micro-batches, their gradients, the update; see trainer.h. */
#include "train/trainer.h"

#include "base/error.h"
#include "msa/memory.h"
#include "train/flops.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- stages ------------------------------------------------------------------------------- */

msa_status msa__sum_rows(msa_trainer *t, const float *rows, int64_t n, double *sum)
{
    MSA_TRY(msa_memory_download(t->ctx, t->rows, rows, (size_t)n * sizeof(float)));
    double total = 0;
    for (int64_t i = 0; i < n; i++) total += (double)t->rows[i];
    *sum += total;
    return MSA_OK;
}

/* The first batch of a step of the current stage. Batches are numbered by tokens, so that a stage
 * of another length begins where the last one stopped. */
static int64_t first_batch(const msa_trainer *t, int64_t stage_step)
{
    const msa__stage *s = msa__trainer_stage(t);
    return (t->progress.stage_tokens + s->micro_tokens - 1) / s->micro_tokens +
           stage_step * (s->step_tokens / s->micro_tokens);
}

static msa_status open_batches(msa_trainer *t)
{
    const msa__stage *s = msa__trainer_stage(t);
    msa__prefetch_args args = {.dataset = t->data,
                               .n = s->step_tokens / s->micro_tokens,
                               .n_tokens = s->micro_tokens,
                               .length = s->length,
                               .end = first_batch(t, s->steps)};
    t->rows = malloc((size_t)(s->micro_tokens * t->model.n_kv_heads) * sizeof(*t->rows));
    if (!t->rows) return MSA_FAIL(MSA_ENOMEM, "train: no memory for the losses of a step");
    MSA_TRY(msa__prefetch_create(&t->batches, &args));
    if (!t->validation) return MSA_OK;
    return msa__batches_create(&t->held_out, t->config.validation_batches, s->micro_tokens);
}

msa_status msa__stage_open(msa_trainer *t)
{
    const msa__stage *s = msa__trainer_stage(t);
    msa__walk_args args = {.ctx = t->ctx,
                           .config = &t->model,
                           .weights = &t->parameters.weights,
                           .gradients = &t->parameters,
                           .dtype = t->parameters.dtype,
                           .keep = s->freeze_backbone ? MSA__KEEP_NOTHING : t->config.keep,
                           .max_tokens = s->micro_tokens};
    t->stage_is_open = 1;
    MSA_TRY(open_batches(t));
    MSA_TRY(msa__walk_create(&t->walk, &args));
    MSA_TRY(msa__balance_create(&t->balance, &t->parameters, s->micro_tokens));
    if (!t->validation || !t->config.recall || s->attention == MSA__PHASE_DENSE) return MSA_OK;
    if (msa__config_count_index(&t->model) == 0) return MSA_OK;
    return msa__recall_create(&t->probe, t->ctx, &t->model, t->parameters.dtype, s->micro_tokens);
}

void msa__stage_close(msa_trainer *t)
{
    if (!t->stage_is_open) return;
    msa__recall_destroy(&t->probe);
    msa__balance_free(&t->balance);
    msa__walk_destroy(&t->walk);
    msa__prefetch_destroy(t->batches);
    msa__batches_free(&t->held_out);
    free(t->rows);
    t->batches = NULL;
    t->rows = NULL;
    t->stage_is_open = 0;
}

/* ---- gradients ---------------------------------------------------------------------------- */

static msa__walk_mode step_mode(const msa_trainer *t, int64_t n_targets)
{
    const msa__train_config *c = &t->config;
    const msa__stage *s = msa__trainer_stage(t);
    int32_t n_index = msa__config_count_index(&t->model);
    double rows = (double)s->step_tokens * t->model.n_kv_heads;
    double weight = c->index_lambda / rows / (c->index_mean && n_index ? n_index : 1); /* (M16) */
    return (msa__walk_mode){
        .phase = (msa__phase)s->attention,
        .freeze_backbone = s->freeze_backbone,
        .index_reaches_backbone = !c->index_detach,
        .measure_index = (t->progress.step + 1) % c->log_every == 0,
        .loss_weight = n_targets ? (float)(1.0 / (double)n_targets) : 0,
        .index_weight = (float)weight,
    };
}

static msa_status run_micro(msa_trainer *t, const msa__batch *batch, double *loss)
{
    msa__walk *w = &t->walk;
    msa__walk_batch view = {batch->tokens,     batch->targets,  batch->positions,
                            batch->cu_seqlens, batch->n_tokens, batch->n_sequences};
    MSA_TRY(msa__walk_forward(w, &view));
    if (!w->mode.freeze_backbone) {
        MSA_TRY(msa__walk_loss(w, 1));
        MSA_TRY(msa__walk_backward(w));
        MSA_TRY(msa__sum_rows(t, w->loss, w->n_tokens, loss));
    }
    for (int32_t layer = 0; w->mode.measure_index && layer < t->model.n_layers; layer++) {
        if (!msa__walk_has_index(w, layer)) continue;
        MSA_TRY(msa__sum_rows(t, w->index_loss[layer],
                              w->n_tokens * msa__index_rows(&t->model, layer),
                              &t->index_loss[layer]));
    }
    t->flops += msa__flops(&t->parameters, &w->mode, &view);
    return t->balance.counts ? msa__balance_count(&t->balance, w) : MSA_OK;
}

static void finish_losses(msa_trainer *t, double loss, int64_t n_targets)
{
    const msa__stage *s = msa__trainer_stage(t);
    double sum = 0;
    int32_t n = 0;
    t->state.loss = s->freeze_backbone ? (double)NAN : loss / (double)(n_targets ? n_targets : 1);
    t->state.index_loss = NAN;
    if (!t->walk.mode.measure_index) return;
    for (int32_t layer = 0; layer < t->model.n_layers; layer++) {
        t->index_loss[layer] /= (double)(s->step_tokens * msa__index_rows(&t->model, layer));
        if (!msa__walk_has_index(&t->walk, layer)) continue;
        sum += t->index_loss[layer];
        n++;
    }
    if (n) t->state.index_loss = sum / n;
}

static msa_status run_micros(msa_trainer *t)
{
    const msa__batches *batches;
    int64_t n_targets = 0;
    double loss = 0;
    MSA_TRY(msa__prefetch_take(t->batches, first_batch(t, t->progress.stage_step), &batches));
    for (int64_t i = 0; i < batches->n; i++) n_targets += batches->list[i].n_targets;
    t->walk.mode = step_mode(t, n_targets);
    t->flops = 0;
    memset(t->index_loss, 0, (size_t)t->model.n_layers * sizeof(*t->index_loss));
    MSA_TRY(msa__parameters_zero(&t->parameters, t->parameters.gradients));
    for (int64_t i = 0; i < batches->n; i++) {
        MSA_TRY(run_micro(t, &batches->list[i], &loss));
    }
    finish_losses(t, loss, n_targets);
    return MSA_OK;
}

/* ---- the update --------------------------------------------------------------------------- */

static msa_status fail_skipped(const msa_trainer *t)
{
    return MSA_FAIL(MSA_EINVAL,
                    "train: step %lld: loss %g, gradient norms %g and %g of the index, "
                    "not finite for %lld steps, optimizer.max_skipped = %lld",
                    (long long)t->progress.step, t->state.loss, t->state.grad_norm,
                    t->state.index_grad_norm, (long long)t->progress.skipped,
                    (long long)t->config.max_skipped);
}

static msa_status update(msa_trainer *t)
{
    const msa__stage *s = msa__trainer_stage(t);
    double share = msa__schedule_share(s, t->progress.stage_step);
    msa__update u = {.backbone = !s->freeze_backbone,
                     .index = s->attention != MSA__PHASE_DENSE,
                     .lr = s->lr * share,
                     .index_lr = s->index_lr * share};
    int32_t finite = s->freeze_backbone || isfinite(t->state.loss);
    u.skipped = !finite;
    if (finite) MSA_TRY(msa__optimizer_step(&t->optimizer, &u));
    t->state.skipped = u.skipped;
    t->state.grad_norm = finite ? u.grad_norm : (double)NAN;
    t->state.index_grad_norm = finite ? u.index_grad_norm : (double)NAN;
    t->state.lr = u.backbone ? u.lr : 0;
    t->state.index_lr = u.index ? u.index_lr : 0;
    t->progress.skipped = u.skipped ? t->progress.skipped + 1 : 0;
    if (u.skipped) {
        msa__balance_clear(&t->balance);
    } else {
        double rate = s->freeze_backbone ? 0 : t->config.bias_rate;
        MSA_TRY(msa__balance_update(&t->balance, rate, &t->worst_load));
    }
    return t->progress.skipped > t->config.max_skipped ? fail_skipped(t) : MSA_OK;
}

msa_status msa__step_run(msa_trainer *t)
{
    MSA_TRY(run_micros(t));
    MSA_TRY(update(t));
    t->progress.step++;
    t->progress.stage_step++;
    t->progress.tokens += msa__trainer_stage(t)->step_tokens;
    return MSA_OK;
}
