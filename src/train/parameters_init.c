/* First values of the parameters: random ones, or those of a model folder. */
#include "train/parameters.h"

#include "base/error.h"
#include "base/numeric.h"
#include "base/rng.h"
#include "base/threads.h"

#include <math.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#define PIECE ((int64_t)1 << 14) /* elements made by one thread */
#define BATCH (64 * PIECE)       /* elements made at a time */

/* ---- random ------------------------------------------------------------------------------- */

/* A draw is the sum of the four halves of two Philox words: nearly normal, never beyond 3.47
 * standard deviations, and made of integers, so the same everywhere. Variance 4 (2^32 - 1) / 12. */
#define DRAW_MEAN   131070.0
#define DRAW_SPREAD 37837.2

static double draw(uint32_t a, uint32_t b)
{
    return ((double)((a & 0xffff) + (a >> 16)) + (double)((b & 0xffff) + (b >> 16)) - DRAW_MEAN) /
           DRAW_SPREAD;
}

static uint64_t name_stream(const char *name)
{
    uint64_t hash = 14695981039346656037u; /* FNV-1a */
    for (; *name; name++) hash = (hash ^ (uint8_t)*name) * 1099511628211u;
    return hash;
}

/* What is added to the residual stream starts smaller, the deeper the model. */
static int32_t writes_residual(const msa__tensor_spec *spec)
{
    if (spec->layer < 0) return 0;
    if (spec->expert >= 0) return spec->slot == offsetof(msa_mlp_weights, down);
    return spec->slot == offsetof(msa__layer_weights, o) ||
           spec->slot == offsetof(msa__layer_weights, mlp.down) ||
           spec->slot == offsetof(msa__layer_weights, shared.down);
}

/* Elements first .. first+n-1 of a tensor. */
typedef struct batch {
    uint64_t seed, stream;
    int64_t first, n;
    double scale;
    float *values; /* [n] */
} batch;

static void draw_piece(void *arg, int64_t item, int32_t thread)
{
    const batch *b = arg;
    int64_t begin = item * PIECE, end = begin + PIECE < b->n ? begin + PIECE : b->n;
    (void)thread;
    for (int64_t i = begin; i < end; i += 2) {
        uint32_t words[4];
        msa__philox(b->seed, (uint64_t)(b->first + i) / 2, b->stream, words);
        for (int64_t k = 0; k < 2 && i + k < end; k++) {
            b->values[i + k] = (float)(b->scale * draw(words[2 * k], words[2 * k + 1]));
        }
    }
}

/* Norms and biases. */
static msa_status put_constant(msa__parameters *p, const msa__parameter *one, float *values)
{
    int32_t is_norm = one->spec.kind == MSA__KIND_NORM && !p->config->norm_one_plus;
    for (int64_t i = 0; i < one->n; i++) values[i] = is_norm ? 1.0f : 0.0f;
    return msa__parameters_put(p, one, 0, one->n, values);
}

static msa_status randomize_one(msa__parameters *p, const msa__parameter *one, batch b)
{
    if (one->spec.columns == 0) return put_constant(p, one, b.values);
    b.stream = name_stream(one->spec.name);
    if (writes_residual(&one->spec)) b.scale /= sqrt(2.0 * p->config->n_layers);
    for (b.first = 0; b.first < one->n; b.first += BATCH) {
        b.n = one->n - b.first < BATCH ? one->n - b.first : BATCH;
        msa__parallel_for(msa__context_pool(p->ctx), (b.n + PIECE - 1) / PIECE, draw_piece, &b);
        MSA_TRY(msa__parameters_put(p, one, b.first, b.n, b.values));
    }
    return MSA_OK;
}

msa_status msa__parameters_randomize(msa__parameters *p, uint64_t seed, float spread)
{
    batch b = {.seed = seed, .scale = spread, .values = malloc((size_t)BATCH * sizeof(float))};
    if (!b.values) return MSA_FAIL(MSA_ENOMEM, "train: no memory for a batch of random numbers");
    msa_status status = MSA_OK;
    for (int32_t i = 0; i < p->n_list && status == MSA_OK; i++) {
        status = randomize_one(p, &p->list[i], b);
    }
    free(b.values);
    return status;
}

/* ---- from a folder ------------------------------------------------------------------------ */

/* scales: of MXFP8, which is read as what it stands for. */
static msa_status load_one(msa__parameters *p, const msa__parameter *one, const msa_tensor *from,
                           const msa_tensor *scales, float *piece)
{
    const uint8_t *exponents = scales->data;
    if (!from->data) {
        if (one->group == MSA__GROUP_INDEX_DECAYED || one->group == MSA__GROUP_INDEX_UNDECAYED) {
            return MSA_OK;
        }
        return MSA_FAIL(MSA_EINVAL, "train: tensor %s is not in the folder of init_from",
                        one->spec.name);
    }
    if (!exponents && from->dtype != MSA_DTYPE_F32 && from->dtype != MSA_DTYPE_BF16 &&
        from->dtype != MSA_DTYPE_F16) {
        return MSA_FAIL(MSA_EUNSUPPORTED,
                        "train: tensor %s of init_from: dtype %s, must be f32, "
                        "bf16, f16 or MXFP8",
                        one->spec.name, msa_dtype_name(from->dtype));
    }
    int64_t columns = one->spec.columns ? one->spec.columns : 1;
    if (from->shape[0] != one->spec.rows || (one->spec.columns && from->shape[1] != columns)) {
        return MSA_FAIL(MSA_EINVAL,
                        "train: tensor %s of init_from: shape [%lld, %lld], must be "
                        "[%lld, %lld] by model.config",
                        one->spec.name, (long long)from->shape[0],
                        one->spec.columns ? (long long)from->shape[1] : 0,
                        (long long)one->spec.rows, (long long)one->spec.columns);
    }
    for (int64_t at = 0; at < one->n; at += PIECE) {
        int64_t n = one->n - at < PIECE ? one->n - at : PIECE;
        for (int64_t i = 0; i < n; i++) {
            piece[i] = load_f32(from->data, from->dtype, at + i);
            if (exponents) piece[i] *= e8m0_to_f32(exponents[(at + i) / 32]);
        }
        MSA_TRY(msa__parameters_put(p, one, at, n, piece));
    }
    return MSA_OK;
}

msa_status msa__parameters_load(msa__parameters *p, const msa__weights *from)
{
    if (from->n_layers != p->config->n_layers || from->n_experts != p->config->n_experts) {
        return MSA_FAIL(MSA_EINVAL,
                        "train: init_from has %d layers and %d experts, must have %d "
                        "and %d by model.config",
                        from->n_layers, from->n_experts, p->config->n_layers, p->config->n_experts);
    }
    float *piece = malloc((size_t)PIECE * sizeof(*piece));
    if (!piece) return MSA_FAIL(MSA_ENOMEM, "train: no memory for a piece of a tensor");
    msa_status status = MSA_OK;
    for (int32_t i = 0; i < p->n_list && status == MSA_OK; i++) {
        const msa__tensor_spec *spec = &p->list[i].spec;
        status = load_one(p, &p->list[i], msa__weights_view(from, spec),
                          msa__weights_scales(from, spec), piece);
    }
    free(piece);
    return status;
}
