/* What a quantisation refuses; see quantization.h. */
#include "base/error.h"
#include "convert/quantization.h"
#include "model/checkpoint.h"

#include <stdlib.h>
#include <string.h>

msa_status msa__quantization_check_source(const msa__quantization *quantization)
{
    const char *dir = quantization->args.source_dir;
    const msa__config *source = &quantization->source;
    if (source->family != MSA__FAMILY_M3) {
        return MSA_FAIL(MSA_EUNSUPPORTED,
                        "quantize: %.200s is a %s, must be of MiniMax-M3's shape: other families "
                        "have no MXFP8 layout",
                        dir, source->architecture);
    }
    if (!source->mxfp8) return MSA_OK;
    return MSA_FAIL(MSA_EUNSUPPORTED,
                    "quantize: %.200s has MXFP8 weights already, must be f32, bf16 or f16", dir);
}

/* ---- tensors that would be lost ------------------------------------------------------------ */

typedef struct places {
    const msa__weights *weights;
    uintptr_t *data; /* where the model's tensors begin */
    size_t n, capacity;
} places;

static msa_status add_place(void *user, const msa__tensor_spec *spec)
{
    places *p = user;
    if (p->n == p->capacity) {
        size_t capacity = p->capacity ? 2 * p->capacity : 256;
        uintptr_t *grown = realloc(p->data, capacity * sizeof(*grown));
        if (!grown) return MSA_FAIL(MSA_ENOMEM, "quantize: no memory for the list of tensors");
        p->data = grown;
        p->capacity = capacity;
    }
    p->data[p->n++] = (uintptr_t)msa__weights_view(p->weights, spec)->data;
    return MSA_OK;
}

static int compare_places(const void *a, const void *b)
{
    uintptr_t x = *(const uintptr_t *)a, y = *(const uintptr_t *)b;
    return (x > y) - (x < y);
}

/* 1: one of the model's tensors is this one or a part of it. */
static int32_t is_used(const places *p, const msa_tensor *tensor)
{
    uintptr_t begin = (uintptr_t)tensor->data;
    size_t bytes = msa_dtype_bytes(tensor->dtype), low = 0, high = p->n;
    for (int32_t i = 0; i < tensor->n_dims; i++) bytes *= (size_t)tensor->shape[i];
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (p->data[middle] < begin)
            low = middle + 1;
        else
            high = middle;
    }
    return low < p->n && p->data[low] - begin < bytes;
}

static msa_status check_file(const places *p, const msa_safetensors *file)
{
    for (int64_t i = 0; i < msa_safetensors_count(file); i++) {
        msa_tensor tensor;
        MSA_TRY(msa_safetensors_get(file, i, &tensor));
        if (is_used(p, &tensor)) continue;
        return MSA_FAIL(MSA_EUNSUPPORTED,
                        "quantize: tensor %.150s is none of the text model by config.json, must "
                        "not be there: it would be lost",
                        msa_safetensors_name(file, i));
    }
    return MSA_OK;
}

msa_status msa__quantization_check_tensors(const msa__quantization *quantization)
{
    places p = {.weights = &quantization->weights};
    const msa__checkpoint *checkpoint = quantization->weights.checkpoint;
    msa_status status = msa__layout_visit(&quantization->source, add_place, &p);
    if (p.n > 0) qsort(p.data, p.n, sizeof(*p.data), compare_places);
    for (int32_t f = 0; f < checkpoint->n_files && status == MSA_OK; f++) {
        status = check_file(&p, checkpoint->files[f]);
    }
    free(p.data);
    return status;
}

/* ---- modules that stay --------------------------------------------------------------------- */

/* Stops with MSA_EBUSY, which nothing else returns here, at a matrix that the name covers. */
static msa_status find_module(void *user, const msa__tensor_spec *spec)
{
    char module[sizeof(spec->name)];
    strcpy(module, spec->name);
    char *suffix = strstr(module, ".weight");
    if (suffix) *suffix = '\0';
    return spec->columns && msa__config_ignores(user, module) ? MSA_EBUSY : MSA_OK;
}

msa_status msa__quantization_check_keep(const msa__quantization *quantization)
{
    static const char letters[] =
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.";
    const msa_quantize_args *args = &quantization->args;
    for (int32_t i = 0; i < args->n_keep; i++) {
        char *name = (char *)args->keep[i];
        msa__config one = {.n_ignored = 1, .ignored_layers = &name};
        if (name && !name[strspn(name, letters)] &&
            msa__layout_visit(&quantization->source, find_module, &one) == MSA_EBUSY) {
            continue;
        }
        return MSA_FAIL(MSA_EINVAL, "quantize: keep[%d] = %.100s, must name a matrix of the model",
                        i, name ? name : "NULL");
    }
    return MSA_OK;
}
