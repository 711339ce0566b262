/* Sampling: from the logits of one position to one token.
 *
 * All filters keep a prefix of one total order, "larger logit first, then lower id". So none of
 * them sorts: a filter finds the last token of its prefix by quickselect over a scratch copy
 * (expected time linear in the vocabulary), then drops everything behind it. The survivors stay in
 * ascending id, and the draw walks them in that order.
 */
#include "base/error.h"
#include "base/overflow.h"
#include "base/rng.h"
#include "msa/layer.h"
#include "base/args.h"

#include <math.h>
#include <string.h>

typedef struct candidate {
    float logit; /* penalised */
    int32_t id;
    double weight; /* exp((logit - largest) / temperature); 1 while top-k counts */
} candidate;

static size_t list_bytes(int32_t vocab)
{
    return msa__align64(sizeof(candidate) * (size_t)vocab);
}

/* The candidates and the scratch copy; token counts share the scratch. */
size_t msa_sample_workspace_bytes(int32_t vocab)
{
    return vocab > 0 ? 2 * list_bytes(vocab) : 0;
}

static msa_status check_number(const char *name, float value, float low, float high)
{
    if (value >= low && value <= high) return MSA_OK;
    return MSA_FAIL(MSA_EINVAL, "sample: %s = %g, must be %g..%g", name, (double)value, (double)low,
                    (double)high);
}

static msa_status check_args(const msa_sample_args *args)
{
    if (!args->logits) return MSA_FAIL(MSA_EINVAL, "sample: logits = NULL, must be a pointer");
    if (args->n_recent < 0) {
        return MSA_FAIL(MSA_EINVAL, "sample: n_recent = %lld, must not be negative",
                        (long long)args->n_recent);
    }
    if (args->n_recent > 0 && !args->recent) {
        return MSA_FAIL(MSA_EINVAL, "sample: recent = NULL, must hold n_recent = %lld tokens",
                        (long long)args->n_recent);
    }
    if (args->vocab < 1) {
        return MSA_FAIL(MSA_EINVAL, "sample: vocab = %d, must be positive", args->vocab);
    }
    for (int64_t i = 0; i < args->n_recent; i++) {
        if (args->recent[i] < 0 || args->recent[i] >= args->vocab) {
            return MSA_FAIL(MSA_EINVAL, "sample: recent[%lld] = %d, must be 0..%d (vocab)",
                            (long long)i, args->recent[i], args->vocab - 1);
        }
    }
    if (args->top_k < 0) {
        return MSA_FAIL(MSA_EINVAL, "sample: top_k = %d, must not be negative", args->top_k);
    }
    const float most = 3e38f; /* finite */
    MSA_TRY(check_number("temperature", args->temperature, 0, most));
    MSA_TRY(check_number("top_p", args->top_p, 0, 1));
    MSA_TRY(check_number("min_p", args->min_p, 0, 1));
    MSA_TRY(check_number("repetition_penalty", args->repetition_penalty, 0, most));
    MSA_TRY(check_number("frequency_penalty", args->frequency_penalty, -most, most));
    return check_number("presence_penalty", args->presence_penalty, -most, most);
}

/* Logits after penalties, ids ascending; returns how many are not -inf. */
static int64_t list_candidates(const msa_sample_args *args, candidate *list, int32_t *counts)
{
    int64_t n = 0;
    int32_t vocab = args->vocab;
    float repetition = args->repetition_penalty;
    memset(counts, 0, sizeof(*counts) * (size_t)vocab);
    for (int64_t i = 0; i < args->n_recent; i++) {
        if (counts[args->recent[i]] < INT32_MAX) counts[args->recent[i]]++;
    }
    for (int32_t id = 0; id < vocab; id++) {
        float logit = args->logits[id];
        if (counts[id]) {
            if (repetition != 0) logit = logit > 0 ? logit / repetition : logit * repetition;
            logit -= args->frequency_penalty * (float)counts[id] + args->presence_penalty;
        }
        if (logit > -INFINITY) list[n++] = (candidate){logit, id, 1}; /* NaN is not greater */
    }
    return n;
}

static int ranks_before(const candidate *a, const candidate *b)
{
    return a->logit > b->logit || (a->logit == b->logit && a->id < b->id);
}

static void swap(candidate *a, candidate *b)
{
    candidate t = *a;
    *a = *b;
    *b = t;
}

/* Candidate at which the running weight in rank order reaches target > 0; the last one if rounding
 * keeps the sum below it. Permutes list. Pivots are pseudo-random: no logits make it quadratic. */
static candidate prefix_end(candidate *list, int64_t n, double target)
{
    candidate end = list[0];
    int64_t low = 0, high = n; /* the end is in here; target counts from low */
    while (low < high) {
        uint32_t words[4];
        msa__philox(0, (uint64_t)low, (uint64_t)high, words);
        int64_t pivot =
            low + (int64_t)(((uint64_t)words[0] << 32 | words[1]) % (uint64_t)(high - low));
        swap(&list[pivot], &list[high - 1]);
        int64_t middle = low;
        double before = 0;
        for (int64_t i = low; i < high - 1; i++) {
            if (!ranks_before(&list[i], &list[high - 1])) continue;
            before += list[i].weight;
            swap(&list[i], &list[middle++]);
        }
        swap(&list[middle], &list[high - 1]);
        if (before >= target) {
            high = middle;
            continue;
        }
        end = list[middle];
        target -= before + end.weight;
        if (target <= 0) break;
        low = middle + 1;
    }
    return end;
}

/* Drop what ranks behind the prefix whose weight reaches target; returns how many are left. */
static int64_t keep_prefix(candidate *list, candidate *scratch, int64_t n, double target)
{
    int64_t kept = 0;
    memcpy(scratch, list, sizeof(*list) * (size_t)n);
    candidate end = prefix_end(scratch, n, target);
    for (int64_t i = 0; i < n; i++) {
        if (!ranks_before(&end, &list[i])) list[kept++] = list[i];
    }
    return kept;
}

/* Softmax numerators; returns their sum. Dividing the difference, not the logits, keeps tiny
 * temperatures finite; equal infinities count as equal. */
static double weigh(candidate *list, int64_t n, float largest, float temperature)
{
    double total = 0;
    for (int64_t i = 0; i < n; i++) {
        double below = list[i].logit == largest ? 0 : (double)list[i].logit - (double)largest;
        list[i].weight = exp(below / (double)temperature);
        total += list[i].weight;
    }
    return total;
}

static int32_t draw_token(const msa_sample_args *args, const candidate *list, int64_t n)
{
    double total = 0, sum = 0;
    uint32_t words[4];
    msa__philox(args->seed, args->draw, 0, words);
    double uniform = (double)(((uint64_t)words[0] << 32 | words[1]) >> 11) * 0x1p-53;
    for (int64_t i = 0; i < n; i++) total += list[i].weight;
    int32_t token = list[0].id;
    for (int64_t i = 0; i < n && sum <= uniform * total; i++) {
        if (list[i].weight == 0) continue;
        sum += list[i].weight;
        token = list[i].id;
    }
    return token;
}

static int32_t choose(const msa_sample_args *args, candidate *list, candidate *scratch, int64_t n)
{
    candidate best = list[0];
    for (int64_t i = 1; i < n; i++) {
        if (list[i].logit > best.logit) best = list[i];
    }
    if (args->temperature == 0) return best.id;
    if (args->top_k > 0 && args->top_k < n) n = keep_prefix(list, scratch, n, args->top_k);
    double total = weigh(list, n, best.logit, args->temperature);
    if (args->top_p > 0 && args->top_p < 1) {
        n = keep_prefix(list, scratch, n, (double)args->top_p * total);
    }
    if (args->min_p > 0) { /* of the largest probability, whose weight is 1 */
        int64_t kept = 0;
        for (int64_t i = 0; i < n; i++) {
            if (list[i].weight >= (double)args->min_p) list[kept++] = list[i];
        }
        n = kept;
    }
    return draw_token(args, list, n);
}

msa_status msa_sample(const msa_sample_args *caller_args, void *workspace, size_t workspace_bytes,
                      int32_t *token)
{
    msa_sample_args args;
    MSA_TRY(msa__args_copy("sample", &args, sizeof(args), caller_args));
    MSA_TRY(check_args(&args));
    size_t needed_bytes = msa_sample_workspace_bytes(args.vocab);
    if (workspace_bytes < needed_bytes) {
        return MSA_FAIL(MSA_EINVAL, "sample: workspace_bytes = %zu, must be at least %zu",
                        workspace_bytes, needed_bytes);
    }
    if (!workspace || (uintptr_t)workspace % 64) {
        return MSA_FAIL(MSA_EINVAL, "sample: workspace = %p, must be a pointer aligned to 64",
                        workspace);
    }
    if (!token) return MSA_FAIL(MSA_EINVAL, "sample: token = NULL, must be a pointer");
    candidate *list = workspace;
    unsigned char *scratch = (unsigned char *)workspace + list_bytes(args.vocab);
    int64_t n = list_candidates(&args, list, (int32_t *)(void *)scratch);
    if (n == 0) {
        return MSA_FAIL(MSA_EINVAL, "sample: logits[0..%d], every one is NaN or -inf",
                        args.vocab - 1);
    }
    *token = choose(&args, list, (candidate *)(void *)scratch, n);
    return MSA_OK;
}
