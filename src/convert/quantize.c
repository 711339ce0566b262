/* msa_quantize: a folder with bf16 or f32 weights in, one with MXFP8 weights out; see
 * msa/convert.h.
 *
 * The result's config is written, read back with the ordinary reader, and the reader's own rule
 * then says which tensors have scales. The source is mapped and read once, a piece at a time; the
 * scales of one tensor wait in memory until its codes are written. config.json lands last.
 */
#include "base/alloc.h"
#include "base/args.h"
#include "base/error.h"
#include "base/numeric.h"
#include "convert/folder.h"
#include "convert/mxfp8.h"
#include "convert/quantization.h"
#include "model/weight_files.h"

#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>

#define CONFIG_MAX_BYTES ((size_t)16 << 20)
#define PIECE            ((int64_t)1 << 16) /* codes written at a time; whole groups */

typedef struct writing {
    msa__quantization *quantization;
    msa__weight_files *files;
    int64_t next, done_bytes; /* next: index of the next tensor in the files */
    uint8_t codes[PIECE];
} writing;

/* ---- what is reported ---------------------------------------------------------------------- */

static int32_t kind_of(const msa__tensor_spec *spec)
{
    if (spec->kind == MSA__KIND_EMBEDDING) return MSA_QUANTIZE_EMBEDDING;
    if (spec->kind == MSA__KIND_HEAD) return MSA_QUANTIZE_HEAD;
    if (spec->kind != MSA__KIND_MATRIX) return MSA_QUANTIZE_OTHER;
    if (spec->expert >= 0) return MSA_QUANTIZE_EXPERT;
    switch (spec->slot) {
    case offsetof(msa__layer_weights, index_q):
    case offsetof(msa__layer_weights, index_k):
    case offsetof(msa__layer_weights, index_weights):
        return MSA_QUANTIZE_INDEX;
    case offsetof(msa__layer_weights, q):
    case offsetof(msa__layer_weights, k):
    case offsetof(msa__layer_weights, v):
    case offsetof(msa__layer_weights, o):
    case offsetof(msa__layer_weights, output_gate):
        return MSA_QUANTIZE_ATTENTION;
    default:
        return MSA_QUANTIZE_MLP;
    }
}

static int64_t count_elements(const msa__tensor_spec *spec)
{
    return spec->rows * (spec->columns ? spec->columns : 1);
}

static void count_tensor(msa_quantize_info *info, const msa__tensor_spec *spec, msa_dtype source,
                         int32_t quantized)
{
    msa_quantize_kind *kind = &info->kinds[kind_of(spec)];
    int64_t n = count_elements(spec), before = n * (int64_t)msa_dtype_bytes(source);
    int64_t after = quantized ? n + n / MSA__MXFP8_GROUP : before;
    kind->n_quantized += quantized;
    kind->n_kept += !quantized;
    kind->source_bytes += before;
    kind->bytes += after;
    info->source_bytes += before;
    info->bytes += after;
}

/* ---- tensors ------------------------------------------------------------------------------- */

static msa_status declare_tensor(void *user, const msa__tensor_spec *spec)
{
    writing *w = user;
    msa__quantization *q = w->quantization;
    msa_dtype dtype = msa__weights_view(&q->weights, spec)->dtype;
    int32_t quantized = msa__spec_quantized(&q->target, spec);
    int64_t shape[2] = {spec->rows, spec->columns}, index;
    char name[sizeof(spec->name) + 16];
    count_tensor(&q->info, spec, dtype, quantized);
    MSA_TRY(msa__weight_files_declare(w->files, spec->name, quantized ? MSA_DTYPE_F8_E4M3 : dtype,
                                      spec->columns ? 2 : 1, shape, &index));
    if (!quantized) return MSA_OK;
    shape[1] /= MSA__MXFP8_GROUP;
    (void)snprintf(name, sizeof(name), "%s_scale_inv", spec->name);
    return msa__weight_files_declare(w->files, name, MSA_DTYPE_U8, 2, shape, &index);
}

static msa_status write_bytes(writing *w, int64_t offset, const void *data, int64_t bytes)
{
    const msa__quantization *q = w->quantization;
    MSA_TRY(msa__weight_files_write(w->files, w->next, offset, data, (size_t)bytes));
    w->done_bytes += bytes;
    if (q->progress) q->progress(q->user, w->done_bytes, msa__weight_files_bytes(w->files));
    return MSA_OK;
}

/* Finite values of one group, and the sum of their squares. */
static msa_status load_group(const msa__tensor_spec *spec, const msa_tensor *tensor, int64_t first,
                             float *values, double *squares)
{
    for (int64_t i = 0; i < MSA__MXFP8_GROUP; i++) {
        float x = load_f32(tensor->data, tensor->dtype, first + i);
        if (!isfinite(x)) {
            return MSA_FAIL(MSA_EFORMAT, "quantize: tensor %s: element %lld is %s, must be finite",
                            spec->name, (long long)(first + i), isnan(x) ? "NaN" : "infinite");
        }
        values[i] = x;
        *squares += (double)x * (double)x;
    }
    return MSA_OK;
}

static msa_status write_codes(writing *w, const msa__tensor_spec *spec, const msa_tensor *tensor,
                              uint8_t *scales)
{
    int64_t n = count_elements(spec);
    double squares = 0, errors = 0;
    float values[MSA__MXFP8_GROUP];
    for (int64_t first = 0; first < n; first += PIECE) {
        int64_t end = n - first < PIECE ? n : first + PIECE;
        for (int64_t at = first; at < end; at += MSA__MXFP8_GROUP) {
            MSA_TRY(load_group(spec, tensor, at, values, &squares));
            errors += msa__mxfp8_quantize(values, w->codes + (at - first),
                                          &scales[at / MSA__MXFP8_GROUP]);
        }
        MSA_TRY(write_bytes(w, first, w->codes, end - first));
    }
    double error = squares > 0 ? sqrt(errors / squares) : 0;
    msa_quantize_kind *kind = &w->quantization->info.kinds[kind_of(spec)];
    kind->largest_error = fmax(kind->largest_error, error);
    w->next++;
    return MSA_OK;
}

static msa_status write_tensor(void *user, const msa__tensor_spec *spec)
{
    writing *w = user;
    const msa_tensor *tensor = msa__weights_view(&w->quantization->weights, spec);
    int64_t n = count_elements(spec);
    if (!msa__spec_quantized(&w->quantization->target, spec)) {
        MSA_TRY(write_bytes(w, 0, tensor->data, n * (int64_t)msa_dtype_bytes(tensor->dtype)));
        w->next++;
        return MSA_OK;
    }
    int64_t n_scales = n / MSA__MXFP8_GROUP;
    uint8_t *scales = malloc((size_t)n_scales);
    if (!scales)
        return MSA_FAIL(MSA_ENOMEM, "quantize: no memory for the scales of %s", spec->name);
    msa_status status = write_codes(w, spec, tensor, scales);
    if (status == MSA_OK) status = write_bytes(w, 0, scales, n_scales);
    free(scales);
    w->next++;
    return status;
}

static msa_status write_weights(msa__quantization *quantization)
{
    writing *w = calloc(1, sizeof(*w));
    if (!w) return MSA_FAIL(MSA_ENOMEM, "quantize: no memory for a piece of a tensor");
    w->quantization = quantization;
    msa_status status = msa__weight_files_create(&w->files, quantization->args.out_dir);
    if (status == MSA_OK) status = msa__layout_visit(&quantization->target, declare_tensor, w);
    if (status == MSA_OK) status = msa__layout_visit(&quantization->target, write_tensor, w);
    if (status == MSA_OK) status = msa__weight_files_finish(w->files);
    msa__weight_files_destroy(w->files);
    free(w);
    return status;
}

/* ---- the whole ----------------------------------------------------------------------------- */

static msa_status parse_target(msa__quantization *quantization, const msa__text *text)
{
    const msa__json *root;
    MSA_TRY(text->status);
    MSA_TRY(msa__json_parse(&root, NULL, "the quantised config.json", text->bytes, text->n));
    msa_status status = msa__config_parse(&quantization->target, root);
    msa__json_free(root);
    return status;
}

static msa_status quantize(msa__quantization *q, msa__text *config)
{
    const char *dir = q->args.source_dir;
    MSA_TRY(msa__json_read(&q->root, NULL, dir, "config.json", CONFIG_MAX_BYTES));
    MSA_TRY(msa__config_read(&q->source, dir));
    MSA_TRY(msa__quantization_check_source(q));
    MSA_TRY(msa__quantization_check_keep(q));
    MSA_TRY(msa__weights_open(&q->weights, &q->source, dir, &msa__default_allocator));
    MSA_TRY(msa__quantization_check_tensors(q));
    msa__quantization_config(q, config);
    MSA_TRY(parse_target(q, config));
    MSA_TRY(msa__convert_make_folder("quantize", q->args.out_dir));
    MSA_TRY(write_weights(q));
    return msa__convert_finish_folder(dir, q->args.out_dir, config);
}

static msa_status check_args(const msa_quantize_args *args, const msa_quantize_info *info)
{
    if (!args->source_dir || !args->out_dir) {
        return MSA_FAIL(MSA_EINVAL, "quantize: %s = NULL, must be given",
                        args->source_dir ? "out_dir" : "source_dir");
    }
    if (args->n_keep < 0 || (args->n_keep > 0 && !args->keep)) {
        return MSA_FAIL(MSA_EINVAL, "quantize: n_keep = %d, must be the length of keep",
                        args->n_keep);
    }
    if (args->embedding != 0 && args->embedding != 1) {
        return MSA_FAIL(MSA_EINVAL, "quantize: embedding = %d, must be 0 or 1", args->embedding);
    }
    if (!info || info->struct_size >= sizeof(*info)) return MSA_OK;
    return MSA_FAIL(MSA_EINVAL, "quantize: struct_size = %u, must be set by its init function",
                    info->struct_size);
}

msa_status msa_quantize(const msa_quantize_args *args, msa_progress_fn progress, void *user,
                        msa_quantize_info *info)
{
    msa_quantize_args copy;
    MSA_TRY(msa__args_copy("quantize", &copy, sizeof(copy), args));
    MSA_TRY(check_args(&copy, info));
    msa__quantization *q = calloc(1, sizeof(*q));
    if (!q) return MSA_FAIL(MSA_ENOMEM, "quantize: no memory for the configuration");
    msa__text config = {0};
    q->args = copy;
    q->progress = progress;
    q->user = user;
    msa_quantize_info_init(&q->info);
    msa_status status = quantize(q, &config);
    if (status == MSA_OK && info) {
        q->info.struct_size = info->struct_size;
        *info = q->info;
    }
    msa__text_free(&config);
    if (q->weights.checkpoint) msa__weights_close(&q->weights);
    msa__config_free(&q->source);
    msa__config_free(&q->target);
    msa__json_free(q->root);
    free(q);
    return status;
}
