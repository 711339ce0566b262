/* See cpu_kl.h. */
#include "backend/cpu/cpu_kl.h"

#include "backend/cpu/isa/attend_kernels.h"
#include "base/numeric.h"

#include <math.h>

static float log2_of(float x) /* normal, positive: 2 atanh((m - 1) / (m + 1)) / ln 2 + exponent */
{
    uint32_t u = f32_bits(x), biased = (u - 0x3f3504f3u + 0x40000000u) >> 23; /* from sqrt(1/2) */
    float m = f32_from_bits(u - (biased << 23) + 0x40000000u);
    float t = (m - 1.0f) / (m + 1.0f), t2 = t * t;
    float y = 0.32059890f;
    y = y * t2 + 0.41219859f;
    y = y * t2 + 0.57707802f;
    y = y * t2 + 0.96179669f;
    y = y * t2 + 2.88539008f;
    return y * t + (float)((int32_t)biased - 128);
}

double msa__kl_loss(const float *teacher, const float *score, float scale, float shift, int64_t n)
{
    float sums[MSA__PANEL] = {0};
    double sum = 0;
    for (int64_t j = 0; j < n; j += MSA__PANEL) {
        for (int i = 0; i < MSA__PANEL; i++) {
            float p = teacher[j + i], student = score[j + i] * scale - shift;
            float term = p * (log2_of(p) - student);
            sums[i] += p > 0x1p-120f ? term : 0.0f; /* hidden keys, and weights next to nothing */
        }
    }
    for (int i = 0; i < MSA__PANEL; i++) sum += (double)sums[i];
    return sum;
}

void msa__kl_add_scores(const msa__cpu_kernels *kernels, float *row, int64_t n, float scale,
                        float *max, float *sum)
{
    float top = *max, part = 0, spread[MSA__PANEL];
    for (int64_t j = 0; j < n; j++) {
        float x = row[j] * scale;
        top = x > top ? x : top;
    }
    for (int i = 0; i < MSA__PANEL; i++) spread[i] = top;
    kernels->attend->weigh(row, n, 1, n, scale, (msa__tile_numbers){spread, MSA__PANEL, 0});
    for (int64_t j = 0; j < n; j++) part += row[j];
    *sum = *sum * (*max == -INFINITY ? 0.0f : exp2f(*max - top)) + part;
    *max = top;
}
