/* Gated activation, (L4) and (L5), its gradient, (G4) and (G5), and the exponentials of a softmax,
 * in plain C, for the compiler of each instruction set to vectorise.
 *
 * Every file that includes this has its own copy, made with its own flags. All of them give the
 * same bits: there is no fused multiply-add and no sum across lanes in here.
 */
#ifndef MSA_CPU_GATED_H
#define MSA_CPU_GATED_H

#include "base/numeric.h"
#include "msa/layer.h"

#include <math.h>

/* exp(x) for -87 <= x <= 0, within 2 ulp: 2^n exp(r), |r| <= ln(2) / 2, Taylor to r^7.
 * Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits. */
static inline float exp_of_negative(float x)
{
    float shifted = x * 0x1.715476p+0f + 0x1.8p23f;
    float n = shifted - 0x1.8p23f;
    float r = x - n * 0x1.63p-1f; /* ln 2 in two parts; n times the first is exact */
    r = r - n * -0x1.bd0106p-13f;
    float p = 1.0f / 5040;
    p = p * r + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    return p * f32_from_bits((f32_bits(shifted) << 23) + 0x3f800000u);
}

/* Beyond 87 the exponential is taken as 0, so that infinities behave as in the limit. */
static inline float sigmoid(float z)
{
    float magnitude = fabsf(z);
    float e = exp_of_negative(-magnitude);
    e = magnitude > 87.0f ? 0.0f : e;
    return (z < 0 ? e : 1.0f) / (1.0f + e);
}

enum { GATED_CHUNK = 64 };

/* Local arrays: out may be gate or up, which would keep the compiler from using vectors. */
static void gated_activation(float *out, const float *gate, const float *up,
                             const msa_activation *activation, int64_t n)
{
    int is_silu = activation->kind == MSA_ACT_SILU;
    float alpha = is_silu ? 1 : activation->alpha, beta = is_silu ? 0 : activation->beta;
    float limit = is_silu ? INFINITY : activation->limit;
    for (int64_t done = 0; done < n; done += GATED_CHUNK) {
        float g[GATED_CHUNK] = {0}, u[GATED_CHUNK] = {0}, y[GATED_CHUNK];
        int64_t left = n - done < GATED_CHUNK ? n - done : GATED_CHUNK;
        memcpy(g, gate + done, (size_t)left * sizeof(*g));
        memcpy(u, up + done, (size_t)left * sizeof(*u));
        for (int i = 0; i < GATED_CHUNK; i++) {
            float gi = g[i] > limit ? limit : g[i];
            float ui = u[i] > limit ? limit : u[i];
            ui = ui < -limit ? -limit : ui;
            y[i] = (ui + beta) * (gi * sigmoid(alpha * gi));
        }
        memcpy(out + done, y, (size_t)left * sizeof(*y));
    }
}

static void gated_gradient(float *d_gate, float *d_up, const float *gate, const float *up,
                           const float *d_out, const msa_activation *activation, int64_t n)
{
    int is_silu = activation->kind == MSA_ACT_SILU;
    float alpha = is_silu ? 1 : activation->alpha, beta = is_silu ? 0 : activation->beta;
    float limit = is_silu ? INFINITY : activation->limit;
    for (int64_t done = 0; done < n; done += GATED_CHUNK) {
        float g[GATED_CHUNK] = {0}, u[GATED_CHUNK] = {0}, d[GATED_CHUNK] = {0};
        int64_t left = n - done < GATED_CHUNK ? n - done : GATED_CHUNK;
        memcpy(g, gate + done, (size_t)left * sizeof(*g));
        memcpy(u, up + done, (size_t)left * sizeof(*u));
        memcpy(d, d_out + done, (size_t)left * sizeof(*d));
        for (int i = 0; i < GATED_CHUNK; i++) {
            float gi = g[i] > limit ? limit : g[i];
            float ui = u[i] > limit ? limit : u[i];
            ui = ui < -limit ? -limit : ui;
            float s = sigmoid(alpha * gi);
            float gate_slope = (ui + beta) * (s * (1 + alpha * gi * (1 - s)));
            float up_slope = gi * s;
            gate_slope = g[i] > limit ? 0 : gate_slope;
            up_slope = u[i] > limit || u[i] < -limit ? 0 : up_slope;
            g[i] = d[i] * gate_slope;
            u[i] = d[i] * up_slope;
        }
        memcpy(d_gate + done, g, (size_t)left * sizeof(*g));
        memcpy(d_up + done, u, (size_t)left * sizeof(*u));
    }
}

static void exp_below(float *y, const float *x, float top, int64_t n)
{
    for (int64_t done = 0; done < n; done += GATED_CHUNK) {
        float z[GATED_CHUNK] = {0};
        int64_t left = n - done < GATED_CHUNK ? n - done : GATED_CHUNK;
        memcpy(z, x + done, (size_t)left * sizeof(*z));
        for (int i = 0; i < GATED_CHUNK; i++) {
            float below = z[i] - top, e = exp_of_negative(below);
            z[i] = below < -87.0f ? 0.0f : e;
        }
        memcpy(y + done, z, (size_t)left * sizeof(*z));
    }
}

#endif
