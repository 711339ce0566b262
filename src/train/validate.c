/* Held-out loss and recall, and the gate between stages. */
#include "train/trainer.h"

#include "base/error.h"

#include <stdlib.h>

static msa_status validate_batch(msa_trainer *t, const msa__batch *batch, double *loss)
{
    msa__walk *w = &t->walk;
    msa__walk_batch view = {batch->tokens,     batch->targets,  batch->positions,
                            batch->cu_seqlens, batch->n_tokens, batch->n_sequences};
    if (t->probe.ctx) {
        MSA_TRY(msa__recall_walk(&t->probe, w, &view));
    } else {
        MSA_TRY(msa__walk_forward(w, &view));
    }
    MSA_TRY(msa__walk_loss(w, 0));
    return msa__sum_rows(t, w->loss, w->n_tokens, loss);
}

static void log_recall(msa_trainer *t)
{
    static const struct {
        const char *key;
        size_t offset;
    } columns[] = {
        {"captured_mass", offsetof(msa_recall, captured_mass)},
        {"block_recall", offsetof(msa_recall, block_recall)},
        {"score_recall", offsetof(msa_recall, score_recall)},
        {"oracle_ratio", offsetof(msa_recall, oracle_ratio)},
        {"block_recall_forced", offsetof(msa_recall, block_recall_forced)},
        {"score_recall_forced", offsetof(msa_recall, score_recall_forced)},
        {"oracle_ratio_forced", offsetof(msa_recall, oracle_ratio_forced)},
    };
    for (size_t c = 0; c < sizeof(columns) / sizeof(columns[0]); c++) {
        int64_t n = 0;
        for (int32_t layer = 0; layer < t->model.n_layers; layer++) {
            if (t->recall[layer].n_rows < 0) continue;
            const char *row = (const char *)&t->recall[layer];
            t->column[n++] = *(const double *)(const void *)(row + columns[c].offset);
        }
        msa__log_numbers(t->log, columns[c].key, t->column, n);
    }
}

msa_status msa__validate(msa_trainer *t)
{
    const msa__stage *s = msa__trainer_stage(t);
    int64_t n_targets = 0;
    double loss = 0;
    if (!t->validation) return MSA_OK;
    MSA_TRY(msa__batches_fill(&t->held_out, t->validation, 0, s->length));
    t->walk.mode = (msa__walk_mode){.phase = (msa__phase)s->attention};
    for (int64_t i = 0; i < t->held_out.n; i++) {
        MSA_TRY(validate_batch(t, &t->held_out.list[i], &loss));
        n_targets += t->held_out.list[i].n_targets;
    }
    t->state.validation_loss = loss / (double)(n_targets ? n_targets : 1);
    if (t->probe.ctx) msa__recall_finish(&t->probe, t->recall);
    msa__log_begin(t->log, "validation", t->progress.step);
    msa__log_text(t->log, "stage", s->name);
    msa__log_count(t->log, "tokens", t->progress.tokens);
    msa__log_number(t->log, "validation_loss", t->state.validation_loss);
    if (t->probe.ctx) log_recall(t);
    return msa__log_end(t->log);
}

int32_t msa__gate_is_passed(const msa_trainer *t)
{
    const msa__stage *s = msa__trainer_stage(t);
    if (s->gate <= 0 || !t->probe.ctx) return 0;
    for (int32_t layer = 0; layer < t->model.n_layers; layer++) {
        const msa_recall *r = &t->recall[layer];
        if (!msa__attention_has_index(t->model.layers[layer].attention)) continue;
        if (r->n_rows == 0 || r->oracle_ratio < s->gate) return 0;
    }
    return 1;
}
