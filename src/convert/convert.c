/* msa_convert: a dense folder in, a folder with an untrained index branch out; see msa/convert.h.
 *
 * The result's config is written, read back with the ordinary reader, and the table of tensors then
 * says what there must be: what the source has is copied, what it lacks is the index branch.
 * config.json lands last, so a folder that has one is whole.
 */
#include "base/alloc.h"
#include "base/args.h"
#include "base/error.h"
#include "convert/conversion.h"
#include "convert/folder.h"
#include "model/weight_files.h"

#include <stdlib.h>

#define CONFIG_MAX_BYTES ((size_t)16 << 20)

/* ---- tensors ------------------------------------------------------------------------------- */

typedef struct writing {
    const msa__conversion *conversion;
    msa__weight_files *files;
    int64_t next, done_bytes;
} writing;

/* A tensor that the source lacks is of the index branch. */
static msa_status declare_tensor(void *user, const msa__tensor_spec *spec)
{
    writing *w = user;
    const msa_tensor *tensor = msa__weights_view(&w->conversion->weights, spec);
    const int64_t shape[2] = {spec->rows, spec->columns};
    int64_t index;
    msa_dtype dtype = tensor->data ? tensor->dtype : msa__conversion_dtype(w->conversion, spec);
    return msa__weight_files_declare(w->files, spec->name, dtype, spec->columns ? 2 : 1, shape,
                                     &index);
}

static msa_status write_tensor(void *user, const msa__tensor_spec *spec)
{
    writing *w = user;
    const msa__conversion *c = w->conversion;
    const msa_tensor *tensor = msa__weights_view(&c->weights, spec);
    int64_t n = spec->rows * (spec->columns ? spec->columns : 1);
    msa_dtype dtype = tensor->dtype;
    void *made = NULL;
    if (!tensor->data) {
        dtype = msa__conversion_dtype(c, spec);
        MSA_TRY(msa__conversion_index_tensor(c, spec, &made));
    }
    size_t bytes = (size_t)n * msa_dtype_bytes(dtype);
    msa_status status =
        msa__weight_files_write(w->files, w->next++, 0, made ? made : tensor->data, bytes);
    free(made);
    w->done_bytes += (int64_t)bytes;
    if (c->progress) c->progress(c->user, w->done_bytes, msa__weight_files_bytes(w->files));
    return status;
}

static msa_status write_weights(const msa__conversion *conversion)
{
    writing w = {.conversion = conversion};
    MSA_TRY(msa__weight_files_create(&w.files, conversion->args.out_dir));
    msa_status status = msa__layout_visit(&conversion->target, declare_tensor, &w);
    if (status == MSA_OK) status = msa__layout_visit(&conversion->target, write_tensor, &w);
    if (status == MSA_OK) status = msa__weight_files_finish(w.files);
    msa__weight_files_destroy(w.files);
    return status;
}

/* ---- the whole ----------------------------------------------------------------------------- */

static msa_status parse_target(msa__conversion *conversion, const msa__text *text)
{
    const msa__json *root;
    MSA_TRY(text->status);
    MSA_TRY(msa__json_parse(&root, NULL, "the converted config.json", text->bytes, text->n));
    msa_status status = msa__config_parse(&conversion->target, root);
    msa__json_free(root);
    return status;
}

static msa_status convert(msa__conversion *c, msa__text *config)
{
    const char *dir = c->args.source_dir;
    MSA_TRY(msa__json_read(&c->root, NULL, dir, "config.json", CONFIG_MAX_BYTES));
    MSA_TRY(msa__config_read(&c->source, dir));
    MSA_TRY(msa__conversion_check_source(c));
    MSA_TRY(msa__conversion_choose(c));
    MSA_TRY(msa__weights_open(&c->weights, &c->source, dir, &msa__default_allocator));
    msa__conversion_config(c, config);
    MSA_TRY(parse_target(c, config));
    MSA_TRY(msa__convert_make_folder("convert", c->args.out_dir));
    MSA_TRY(write_weights(c));
    return msa__convert_finish_folder(dir, c->args.out_dir, config);
}

msa_status msa_convert(const msa_convert_args *args, msa_progress_fn progress, void *user)
{
    msa_convert_args copy;
    MSA_TRY(msa__args_copy("convert", &copy, sizeof(copy), args));
    if (!copy.source_dir || !copy.out_dir) {
        return MSA_FAIL(MSA_EINVAL, "convert: %s = NULL, must be given",
                        copy.source_dir ? "out_dir" : "source_dir");
    }
    msa__conversion *c = calloc(1, sizeof(*c));
    if (!c) return MSA_FAIL(MSA_ENOMEM, "convert: no memory for the configuration");
    msa__text config = {0};
    c->args = copy;
    c->progress = progress;
    c->user = user;
    msa_status status = convert(c, &config);
    msa__text_free(&config);
    if (c->weights.checkpoint) msa__weights_close(&c->weights);
    msa__config_free(&c->source);
    msa__config_free(&c->target);
    msa__json_free(c->root);
    free(c);
    return status;
}
