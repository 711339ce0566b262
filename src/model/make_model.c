/* msa_model_make: a random checkpoint in the layout of the released ones.
 *
 * config.json is written from a preset, read back with the ordinary reader, and the table of
 * tensors (layout.c) then says what to make: a made folder opens by construction. config.json lands
 * last, so a folder that has one is whole.
 */
#define _POSIX_C_SOURCE 200809L
#include "base/alloc.h"
#include "base/error.h"
#include "model/files.h"
#include "model/make_preset.h"
#include "model/make_tokenizer.h"
#include "model/make_weights.h"
#include "model/weight_files.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define PIECE ((int64_t)1 << 18) /* elements made at a time */

typedef struct made_tensor {
    msa__tensor_spec spec;
    int64_t n_elements;
    int64_t index, scale_index; /* in the weight files; scale_index -1: none */
} made_tensor;

typedef struct making {
    const char *dir;
    uint64_t seed;
    msa_progress_fn progress;
    void *user;
    msa__config config;
    msa__weight_files *files;
    made_tensor *tensors;
    int64_t n_tensors, capacity;
    int64_t done_bytes;
    void *piece;
} making;

/* ---- tensors ------------------------------------------------------------------------------ */

static msa_status declare_tensor(void *user, const msa__tensor_spec *spec)
{
    making *m = user;
    char scale_name[sizeof(spec->name) + 16];
    msa__random_tensor random;
    int64_t shape[2] = {spec->rows, spec->columns};
    if (m->n_tensors == m->capacity) {
        int64_t capacity = m->capacity ? 2 * m->capacity : 256;
        made_tensor *grown = realloc(m->tensors, (size_t)capacity * sizeof(*grown));
        if (!grown) return MSA_FAIL(MSA_ENOMEM, "make_model: no memory for the list of tensors");
        m->tensors = grown;
        m->capacity = capacity;
    }
    made_tensor *t = &m->tensors[m->n_tensors++];
    *t = (made_tensor){.spec = *spec, .scale_index = -1};
    t->n_elements = spec->rows * (spec->columns ? spec->columns : 1);
    msa__random_tensor_init(&random, &m->config, spec, m->seed);
    MSA_TRY(msa__weight_files_declare(m->files, spec->name, random.dtype, spec->columns ? 2 : 1,
                                      shape, &t->index));
    if (random.dtype != MSA_DTYPE_F8_E4M3) return MSA_OK;
    shape[1] /= 32;
    (void)snprintf(scale_name, sizeof(scale_name), "%s_scale_inv", spec->name);
    return msa__weight_files_declare(m->files, scale_name, MSA_DTYPE_U8, 2, shape, &t->scale_index);
}

static void report(making *m, int64_t bytes)
{
    m->done_bytes += bytes;
    if (m->progress) m->progress(m->user, m->done_bytes, msa__weight_files_bytes(m->files));
}

static msa_status write_tensor(making *m, const made_tensor *t)
{
    msa__random_tensor random;
    msa__random_tensor_init(&random, &m->config, &t->spec, m->seed);
    int64_t element_bytes = (int64_t)msa_dtype_bytes(random.dtype);
    for (int64_t at = 0; at < t->n_elements; at += PIECE) {
        int64_t n = t->n_elements - at < PIECE ? t->n_elements - at : PIECE;
        msa__random_fill(&random, at, n, m->piece);
        MSA_TRY(msa__weight_files_write(m->files, t->index, at * element_bytes, m->piece,
                                        (size_t)(n * element_bytes)));
        report(m, n * element_bytes);
    }
    int64_t n_scales = t->scale_index < 0 ? 0 : t->n_elements / 32;
    for (int64_t at = 0; at < n_scales; at += PIECE) {
        int64_t n = n_scales - at < PIECE ? n_scales - at : PIECE;
        msa__random_fill_scales(&random, at, n, m->piece);
        MSA_TRY(msa__weight_files_write(m->files, t->scale_index, at, m->piece, (size_t)n));
        report(m, n);
    }
    return MSA_OK;
}

/* ---- texts
 * --------------------------------------------------------------------------------------- */

/* Write and free a text; also when it could not be built. */
static msa_status write_text(const making *m, const char *name, msa__text *text)
{
    char path[1024];
    msa_status status = text->status;
    if (status == MSA_OK) status = msa__path_join(path, sizeof(path), m->dir, name);
    if (status == MSA_OK) status = msa__file_write(path, text->bytes, text->n);
    msa__text_free(text);
    return status;
}

static msa_status write_small_files(const making *m)
{
    msa__text tokenizer = {0}, tokenizer_config = {0}, generation = {0};
    msa__made_tokenizer(&tokenizer);
    msa__made_tokenizer_config(&tokenizer_config);
    msa__preset_generation(&generation);
    msa_status status = write_text(m, "tokenizer.json", &tokenizer);
    msa_status second = write_text(m, "tokenizer_config.json", &tokenizer_config);
    msa_status third = write_text(m, "generation_config.json", &generation);
    return status != MSA_OK ? status : second != MSA_OK ? second : third;
}

/* ---- the whole
 * ----------------------------------------------------------------------------------- */

static msa_status make_parts(making *m, const msa__text *config_text)
{
    const msa__json *root;
    MSA_TRY(config_text->status);
    MSA_TRY(msa__json_parse(&root, NULL, "config.json", config_text->bytes, config_text->n));
    msa_status status = msa__config_parse(&m->config, root);
    msa__json_free(root);
    MSA_TRY(status);
    m->piece = malloc((size_t)PIECE * sizeof(float));
    if (!m->piece) return MSA_FAIL(MSA_ENOMEM, "make_model: no memory for a piece of a tensor");
    if (mkdir(m->dir, 0777) != 0 && errno != EEXIST) {
        return MSA_FAIL(MSA_EIO, "make_model: %.300s: %s", m->dir, strerror(errno));
    }
    MSA_TRY(msa__weight_files_create(&m->files, m->dir));
    MSA_TRY(msa__layout_visit(&m->config, declare_tensor, m));
    for (int64_t i = 0; i < m->n_tensors; i++) MSA_TRY(write_tensor(m, &m->tensors[i]));
    MSA_TRY(msa__weight_files_finish(m->files));
    return write_small_files(m);
}

static const msa__preset *find_preset(const char *name)
{
    for (int32_t i = 0; i < msa__n_presets; i++) {
        if (!strcmp(msa__presets[i].name, name)) return &msa__presets[i];
    }
    return NULL;
}

msa_status msa__preset_make(const char *dir, const msa__preset *preset, uint64_t seed,
                            msa_progress_fn progress, void *user)
{
    making m = {.dir = dir, .seed = seed, .progress = progress, .user = user};
    msa__text config_text = {0};
    msa__preset_config(preset, &config_text);
    msa_status status = make_parts(&m, &config_text);
    if (status == MSA_OK) status = write_text(&m, "config.json", &config_text);
    msa__text_free(&config_text);
    msa__config_free(&m.config);
    msa__weight_files_destroy(m.files);
    free(m.tensors);
    free(m.piece);
    return status;
}

msa_status msa_model_make(const char *dir, const char *preset_name, uint64_t seed,
                          msa_progress_fn progress, void *user)
{
    if (!dir || !preset_name) {
        return MSA_FAIL(MSA_EINVAL, "make_model: %s = NULL, must be given", dir ? "preset" : "dir");
    }
    const msa__preset *preset = find_preset(preset_name);
    if (!preset) {
        char names[128] = "";
        for (int32_t i = 0; i < msa__n_presets; i++) {
            (void)snprintf(names + strlen(names), sizeof(names) - strlen(names), "%s%s",
                           i ? ", " : "", msa__presets[i].name);
        }
        return MSA_FAIL(MSA_EINVAL, "make_model: preset = %.40s, must be one of %s", preset_name,
                        names);
    }
    return msa__preset_make(dir, preset, seed, progress, user);
}

const char *msa_model_preset(int32_t i, const char **description)
{
    if (i < 0 || i >= msa__n_presets) return NULL;
    if (description) *description = msa__presets[i].description;
    return msa__presets[i].name;
}
