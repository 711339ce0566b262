/* RoPE's frequencies, in the f32 steps transformers takes; see rope_frequencies.h.
 *
 *   plain    theta^(-2i / rotary_dim)
 *   linear   the same divided by factor: positions are interpolated
 *   llama3   with n = original_positions / wavelength turns in the first training's context:
 * divided by factor where n < low_freq_factor, untouched where n > high_freq_factor, and a blend of
 * both between, by s = (n - low) / (high - low)
 */
#include "model/rope_frequencies.h"

#include <math.h>

static float scale_llama3(const msa__rope_scaling *rope, float frequency)
{
    float original = (float)rope->original_positions, factor = (float)rope->factor;
    float low = (float)rope->low_freq_factor, high = (float)rope->high_freq_factor;
    float wavelength = 6.28318530717958647692f / frequency;
    if (wavelength > original / low) return frequency / factor;
    if (wavelength < original / high) return frequency;
    float smooth = (original / wavelength - low) / (high - low);
    return (1.0f - smooth) * frequency / factor + smooth * frequency;
}

void msa__rope_frequencies(const msa__config *config, float *inv_freq)
{
    const msa__rope_scaling *rope = &config->rope_scaling;
    for (int32_t i = 0; i < config->rotary_dim / 2; i++) {
        float exponent = (float)(2 * i) / (float)config->rotary_dim;
        float frequency = 1.0f / powf((float)config->rope_theta, exponent);
        if (rope->kind == MSA__ROPE_LINEAR) frequency /= (float)rope->factor;
        if (rope->kind == MSA__ROPE_LLAMA3) frequency = scale_llama3(rope, frequency);
        inv_freq[i] = frequency;
    }
}
