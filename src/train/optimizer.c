/* Norms, clipping and AdamW by ranges of the flat arrays; see optimizer.h. */
#include "train/optimizer.h"

#include "base/error.h"
#include "msa/memory.h"

#include <math.h>
#include <string.h>

/* The groups of a branch lie side by side. */
typedef struct branch {
    int32_t first_group; /* the undecayed one; the decayed one follows */
    int32_t sum;         /* its place in sums */
} branch;

static const branch index_branch = {MSA__GROUP_INDEX_UNDECAYED, 0};
static const branch backbone = {MSA__GROUP_UNDECAYED, 1};

static msa_sum_squares_args squares_of(const msa__optimizer *o, const branch *b)
{
    const msa__parameters *p = o->parameters;
    msa_sum_squares_args args;
    msa_sum_squares_args_init(&args);
    args.x = p->gradients + p->group_begin[b->first_group];
    args.n = p->group_begin[b->first_group + 2] - p->group_begin[b->first_group];
    args.out = o->sums + b->sum;
    return args;
}

static msa_status plan(msa__optimizer *o)
{
    const branch *branches[] = {&index_branch, &backbone};
    for (int i = 0; i < 2; i++) {
        msa_sum_squares_args args = squares_of(o, branches[i]);
        msa_plan plan;
        msa_plan_init(&plan);
        MSA_TRY(msa_sum_squares_plan(o->parameters->ctx, &args, &plan));
        if (plan.workspace_bytes > o->workspace_bytes) o->workspace_bytes = plan.workspace_bytes;
    }
    return MSA_OK;
}

static msa_status create(msa__optimizer *o)
{
    msa_context *ctx = o->parameters->ctx;
    void *sums = NULL;
    MSA_TRY(msa__parameters_zero(o->parameters, o->parameters->m));
    MSA_TRY(msa__parameters_zero(o->parameters, o->parameters->v));
    MSA_TRY(msa_memory_alloc(ctx, 2 * sizeof(double), &sums));
    o->sums = sums;
    MSA_TRY(plan(o));
    return msa_memory_alloc(ctx, o->workspace_bytes, &o->workspace);
}

msa_status msa__optimizer_create(msa__optimizer *o, msa__parameters *parameters,
                                 const msa__adamw *settings)
{
    memset(o, 0, sizeof(*o));
    o->parameters = parameters;
    o->settings = *settings;
    msa_status status = create(o);
    if (status != MSA_OK) msa__optimizer_free(o);
    return status;
}

void msa__optimizer_free(msa__optimizer *o)
{
    if (!o->parameters) return;
    msa_memory_free(o->parameters->ctx, o->sums, 2 * sizeof(double));
    msa_memory_free(o->parameters->ctx, o->workspace, o->workspace_bytes);
    memset(o, 0, sizeof(*o));
}

/* ---- a step ------------------------------------------------------------------------------- */

static msa_status measure(msa__optimizer *o, const branch *b)
{
    msa_context *ctx = o->parameters->ctx;
    msa_sum_squares_args args = squares_of(o, b);
    msa_plan plan;
    msa_plan_init(&plan);
    MSA_TRY(msa_sum_squares_plan(ctx, &args, &plan));
    return msa_sum_squares(ctx, &plan, &args, o->workspace, o->workspace_bytes);
}

/* AdamW over one group; decayed or not. */
static msa_status update_group(const msa__optimizer *o, int32_t group, double weight_decay,
                               double lr, double gradient_scale, int64_t step)
{
    const msa__parameters *p = o->parameters;
    const msa__adamw *s = &o->settings;
    int64_t first = p->group_begin[group], n = p->group_begin[group + 1] - first;
    msa_adamw_args args;
    if (n == 0) return MSA_OK;
    msa_adamw_args_init(&args);
    args.n = n;
    args.parameters = p->masters + first;
    args.gradient = p->gradients + first;
    args.m = p->m + first;
    args.v = p->v + first;
    if (p->dtype != MSA_DTYPE_F32) {
        char *copies = p->copies;
        args.copy = msa_tensor_make(copies + (size_t)first * msa_dtype_bytes(p->dtype), p->dtype, 1,
                                    n, 0, 0, 0);
    }
    args.step = step;
    args.lr = (float)lr;
    args.beta1 = (float)s->beta1;
    args.beta2 = (float)s->beta2;
    args.eps = (float)s->eps;
    args.weight_decay = (float)weight_decay;
    args.gradient_scale = (float)gradient_scale;
    return msa_adamw(p->ctx, &args);
}

static msa_status update_branch(const msa__optimizer *o, const branch *b, double lr, double norm,
                                double clip, int64_t step)
{
    double scale = clip > 0 && norm > clip ? clip / norm : 1;
    MSA_TRY(update_group(o, b->first_group, 0, lr, scale, step));
    return update_group(o, b->first_group + 1, o->settings.weight_decay, lr, scale, step);
}

msa_status msa__optimizer_step(msa__optimizer *o, msa__update *u)
{
    double sums[2] = {0, 0};
    if (u->index) MSA_TRY(measure(o, &index_branch));
    if (u->backbone) MSA_TRY(measure(o, &backbone));
    MSA_TRY(msa_memory_download(o->parameters->ctx, sums, o->sums, sizeof(sums)));
    u->index_grad_norm = u->index ? sqrt(sums[index_branch.sum]) : 0;
    u->grad_norm = u->backbone ? sqrt(sums[backbone.sum]) : 0;
    u->skipped = !isfinite(u->index_grad_norm) || !isfinite(u->grad_norm);
    if (u->skipped) return MSA_OK;
    if (u->backbone) {
        MSA_TRY(update_branch(o, &backbone, u->lr, u->grad_norm, o->settings.clip,
                              ++o->backbone_steps));
    }
    if (!u->index) return MSA_OK;
    return update_branch(o, &index_branch, u->index_lr, u->index_grad_norm, o->settings.index_clip,
                         ++o->index_steps);
}
