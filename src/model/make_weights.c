/* Random weights; see make_weights.h.
 *
 * A draw is the sum of the four bytes of one Philox word, 0..1020: bell-shaped, integer, and so the
 * same everywhere. A table turns it into an element, (draw - 510) * spread / 147.8, so that making
 * gigabytes costs one Philox round trip per four elements and no arithmetic in floating point.
 *
 * Spreads keep activations near one: 1/sqrt(inputs), less for what is added to the residual, and
 * small norms (stored around zero), biases and correction biases.
 */
#include "model/make_weights.h"

#include "base/numeric.h"
#include "base/rng.h"

#include <math.h>
#include <string.h>

#define DRAW_MEAN   510
#define DRAW_SPREAD 147.80054f /* sqrt(4 * (256^2 - 1) / 12) */

/* FP8 codes take this spread or up to twice as much; the largest draw, 3.45 spreads, stays below
 * 448. */
#define FP8_SPREAD 64.0f

static int32_t ends_with(const char *name, const char *end)
{
    size_t n = strlen(name), n_end = strlen(end);
    return n >= n_end && !strcmp(name + n - n_end, end);
}

static float choose_spread(const msa__config *config, const msa__tensor_spec *spec)
{
    float spread = 1.0f / sqrtf((float)(spec->columns ? spec->columns : 1));
    switch (spec->kind) {
    case MSA__KIND_NORM:
    case MSA__KIND_BIAS:
    case MSA__KIND_ROUTER_BIAS:
        return 0.05f;
    case MSA__KIND_EMBEDDING:
        return 1.0f;
    case MSA__KIND_HEAD:
        return 2.0f * spread;
    case MSA__KIND_ROUTER:
    case MSA__KIND_MATRIX:
        break;
    }
    if (ends_with(spec->name, ".o_proj.weight") || ends_with(spec->name, ".down_proj.weight") ||
        ends_with(spec->name, ".w2.weight")) {
        return spread / sqrtf(2.0f * (float)config->n_layers);
    }
    return spread;
}

static uint32_t encode(msa_dtype dtype, float x)
{
    if (dtype == MSA_DTYPE_F32) return f32_bits(x);
    return dtype == MSA_DTYPE_BF16 ? f32_to_bf16(x) : f32_to_fp8(x);
}

void msa__random_tensor_init(msa__random_tensor *random, const msa__config *config,
                             const msa__tensor_spec *spec, uint64_t seed)
{
    int32_t f32 = spec->kind == MSA__KIND_ROUTER || spec->kind == MSA__KIND_ROUTER_BIAS;
    float spread = choose_spread(config, spec);
    random->seed = seed;
    random->stream = 14695981039346656037u; /* FNV-1a of the name */
    for (const char *c = spec->name; *c; c++) {
        random->stream = (random->stream ^ (uint8_t)*c) * 1099511628211u;
    }
    random->dtype = f32 ? MSA_DTYPE_F32 : MSA_DTYPE_BF16;
    random->scale = 0;
    if (msa__spec_quantized(config, spec)) {
        int exponent;
        (void)frexpf(spread / FP8_SPREAD, &exponent); /* in [0.5, 1) * 2^exponent */
        random->dtype = MSA_DTYPE_F8_E4M3;
        random->scale = exponent - 1 + 127;
        spread = ldexpf(spread, 1 - exponent);
    }
    float step = spread / DRAW_SPREAD;
    for (int32_t draw = 0; draw <= 2 * DRAW_MEAN; draw++) {
        random->codes[draw] = encode(random->dtype, (float)(draw - DRAW_MEAN) * step);
    }
}

static uint32_t draw_of(uint32_t word)
{
    return (word & 0xff) + (word >> 8 & 0xff) + (word >> 16 & 0xff) + (word >> 24);
}

static void store_code(void *out, msa_dtype dtype, int64_t i, uint32_t code)
{
    if (dtype == MSA_DTYPE_F32)
        ((uint32_t *)out)[i] = code;
    else if (dtype == MSA_DTYPE_BF16)
        ((uint16_t *)out)[i] = (uint16_t)code;
    else
        ((uint8_t *)out)[i] = (uint8_t)code;
}

void msa__random_fill(const msa__random_tensor *random, int64_t first, int64_t n, void *out)
{
    for (int64_t i = 0; i < n; i += 4) {
        uint32_t words[4];
        msa__philox(random->seed, (uint64_t)(first + i) / 4, random->stream, words);
        for (int64_t k = 0; k < 4 && i + k < n; k++) {
            store_code(out, random->dtype, i + k, random->codes[draw_of(words[k])]);
        }
    }
}

/* One group in four gets half the scale, so that a reader that ignores scales fails. */
void msa__random_fill_scales(const msa__random_tensor *random, int64_t first, int64_t n,
                             uint8_t *out)
{
    for (int64_t i = 0; i < n; i += 4) {
        uint32_t words[4];
        msa__philox(~random->seed, (uint64_t)(first + i) / 4, random->stream, words);
        for (int64_t k = 0; k < 4 && i + k < n; k++) {
            out[i + k] = (uint8_t)(random->scale - (words[k] % 4 == 0));
        }
    }
}
