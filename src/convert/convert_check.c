/* What a conversion refuses and what it chooses by itself; see conversion.h. */
#include "base/error.h"
#include "convert/conversion.h"
#include "model/json_optional.h"

#include <string.h>

/* ---- the source ---------------------------------------------------------------------------- */

msa_status msa__conversion_check_source(const msa__conversion *conversion)
{
    const msa__config *source = &conversion->source;
    const char *dir = conversion->args.source_dir;
    const msa__json *vision = msa__json_get(conversion->root, "vision_config");
    if (source->mxfp8) {
        return MSA_FAIL(MSA_EUNSUPPORTED,
                        "convert: %.200s has MXFP8 weights, must be f32, bf16 or f16: training "
                        "needs the unquantised model",
                        dir);
    }
    for (int32_t i = 0; i < source->n_layers; i++) {
        if (source->layers[i].attention == MSA__ATTENTION_DENSE) continue;
        return MSA_FAIL(MSA_EUNSUPPORTED,
                        "convert: layer %d of %.200s %s, must have full attention: only dense "
                        "models are converted",
                        i, dir,
                        source->layers[i].attention == MSA__ATTENTION_MSA
                            ? "selects blocks already"
                            : "has another kind of attention");
    }
    if (!is_null(vision)) {
        return msa__json_fail(vision, MSA_EUNSUPPORTED,
                              "vision parts are not carried over, convert a text-only model");
    }
    int32_t group = source->n_q_heads / source->n_kv_heads;
    if (group <= 32) return MSA_OK;
    return MSA_FAIL(MSA_EUNSUPPORTED,
                    "convert: %d query heads for %d key/value heads, a group must have at most 32",
                    source->n_q_heads, source->n_kv_heads);
}

/* ---- the choices --------------------------------------------------------------------------- */

static msa_status check_range(const char *name, int32_t value, int32_t low, int32_t high)
{
    if (value >= low && value <= high) return MSA_OK;
    return MSA_FAIL(MSA_EINVAL, "convert: %s = %d, must be in %d..%d", name, value, low, high);
}

static msa_status choose_layers(msa__conversion *conversion)
{
    const msa_convert_args *args = &conversion->args;
    int32_t n_layers = conversion->source.n_layers;
    memset(conversion->is_dense, 0, sizeof(conversion->is_dense));
    if (!args->dense_layers) {
        int32_t n = (n_layers + 7) / 8;
        for (int32_t i = 0; i < n && i < 3 && n_layers > 1; i++) conversion->is_dense[i] = 1;
        return MSA_OK;
    }
    for (int32_t i = 0; i < args->n_dense_layers; i++) {
        int32_t low = i ? args->dense_layers[i - 1] + 1 : 0;
        MSA_TRY(check_range("dense_layers", args->dense_layers[i], low, n_layers - 1));
        conversion->is_dense[args->dense_layers[i]] = 1;
    }
    if (args->n_dense_layers < n_layers) return MSA_OK;
    return MSA_FAIL(MSA_EINVAL, "convert: n_dense_layers = %d, must be below the %d layers",
                    args->n_dense_layers, n_layers);
}

msa_status msa__conversion_choose(msa__conversion *conversion)
{
    msa_convert_args *args = &conversion->args;
    if (args->block_size == 0) args->block_size = 128;
    if (args->topk_blocks == 0) args->topk_blocks = 16;
    if (args->n_local_blocks == 0) args->n_local_blocks = 1;
    MSA_TRY(check_range("block_size", args->block_size, 16, 256));
    if ((args->block_size & (args->block_size - 1)) != 0) {
        return MSA_FAIL(MSA_EINVAL, "convert: block_size = %d, must be a power of two",
                        args->block_size);
    }
    MSA_TRY(check_range("topk_blocks", args->topk_blocks, 1, 64));
    MSA_TRY(check_range("n_local_blocks", args->n_local_blocks, 1, args->topk_blocks));
    MSA_TRY(check_range("n_init_blocks", args->n_init_blocks, 0,
                        args->topk_blocks - args->n_local_blocks));
    return choose_layers(conversion);
}
