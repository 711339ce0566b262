/* Writing and reading checkpoints; see snapshot.h. */
#define _POSIX_C_SOURCE 200809L
#include "train/snapshot.h"

#include "base/error.h"
#include "base/numeric.h"
#include "model/files.h"
#include "model/weight_files.h"
#include "msa/memory.h"
#include "msa/safetensors.h"
#include "train/folders.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define VERSION    1
#define STATE_FILE "trainer.state"
#define PIECE      ((int64_t)1 << 16) /* elements moved at a time */

/* The numbers of "about". */
enum {
    ABOUT_VERSION,
    ABOUT_STEP,
    ABOUT_TOKENS,
    ABOUT_STAGE,
    ABOUT_STAGE_STEP,
    ABOUT_STAGE_TOKENS,
    ABOUT_SKIPPED,
    ABOUT_BACKBONE_STEPS,
    ABOUT_INDEX_STEPS,
    ABOUT_LAYOUT, /* fingerprint of the list of tensors */
    ABOUT_DATA,
    ABOUT_RESERVED,
    N_ABOUT
};

/* ---- the state's arrays ------------------------------------------------------------------- */

typedef struct state_array {
    const char *name;
    float *data; /* memory of the operators */
    int64_t n;
} state_array;

#define N_ARRAYS 4

static void list_arrays(const msa__parameters *p, state_array arrays[N_ARRAYS])
{
    arrays[0] = (state_array){"masters", p->masters, p->n};
    arrays[1] = (state_array){"m", p->m, p->n};
    arrays[2] = (state_array){"v", p->v, p->n};
    arrays[3] = (state_array){"router_bias", p->router_bias, p->n_router_bias};
}

/* Names, shapes and places of all tensors. */
static uint64_t layout_fingerprint(const msa__parameters *p)
{
    uint64_t hash = 14695981039346656037u; /* FNV-1a */
    for (int32_t i = 0; i < p->n_list; i++) {
        char line[256];
        const msa__parameter *one = &p->list[i];
        (void)snprintf(line, sizeof(line), "%s %" PRId64 " %" PRId64 " %" PRId64 "\n",
                       one->spec.name, one->spec.rows, one->spec.columns, one->offset);
        for (const char *c = line; *c; c++) hash = (hash ^ (uint8_t)*c) * 1099511628211u;
    }
    return hash;
}

static void fill_about(const msa__snapshot *s, int64_t about[N_ABOUT])
{
    const msa__progress *p = s->progress;
    memset(about, 0, N_ABOUT * sizeof(*about));
    about[ABOUT_VERSION] = VERSION;
    about[ABOUT_STEP] = p->step;
    about[ABOUT_TOKENS] = p->tokens;
    about[ABOUT_STAGE] = p->stage;
    about[ABOUT_STAGE_STEP] = p->stage_step;
    about[ABOUT_STAGE_TOKENS] = p->stage_tokens;
    about[ABOUT_SKIPPED] = p->skipped;
    about[ABOUT_BACKBONE_STEPS] = s->optimizer->backbone_steps;
    about[ABOUT_INDEX_STEPS] = s->optimizer->index_steps;
    about[ABOUT_LAYOUT] = (int64_t)layout_fingerprint(s->parameters);
    about[ABOUT_DATA] = (int64_t)s->data;
}

/* ---- writing ------------------------------------------------------------------------------ */

static msa_status write_array(const msa__snapshot *s, msa_safetensors_writer *writer, int64_t index,
                              const state_array *array, float *piece)
{
    for (int64_t at = 0; at < array->n; at += PIECE) {
        int64_t n = array->n - at < PIECE ? array->n - at : PIECE;
        size_t bytes = (size_t)n * sizeof(float);
        MSA_TRY(msa_memory_download(s->parameters->ctx, piece, array->data + at, bytes));
        MSA_TRY(
            msa_safetensors_writer_write(writer, index, at * (int64_t)sizeof(float), piece, bytes));
    }
    return MSA_OK;
}

static msa_status write_arrays(const msa__snapshot *s, msa_safetensors_writer *writer, float *piece)
{
    state_array arrays[N_ARRAYS];
    int64_t about[N_ABOUT], index, indices[N_ARRAYS];
    const int64_t n_about = N_ABOUT;
    list_arrays(s->parameters, arrays);
    fill_about(s, about);
    MSA_TRY(msa_safetensors_writer_declare(writer, "about", MSA_DTYPE_I64, 1, &n_about, &index));
    for (int i = 0; i < N_ARRAYS; i++) {
        MSA_TRY(msa_safetensors_writer_declare(writer, arrays[i].name, MSA_DTYPE_F32, 1,
                                               &arrays[i].n, &indices[i]));
    }
    MSA_TRY(msa_safetensors_writer_write(writer, index, 0, about, sizeof(about)));
    for (int i = 0; i < N_ARRAYS; i++) {
        MSA_TRY(write_array(s, writer, indices[i], &arrays[i], piece));
    }
    return msa_safetensors_writer_finish(writer);
}

static msa_status write_state(const msa__snapshot *s, const char *dir, float *piece)
{
    char path[MSA__PATH_BYTES];
    msa_safetensors_writer *writer;
    MSA_TRY(msa__path_join(path, sizeof(path), dir, STATE_FILE));
    MSA_TRY(msa_safetensors_writer_create(&writer, path));
    msa_status status = write_arrays(s, writer, piece);
    msa_safetensors_writer_destroy(writer);
    return status;
}

/* Routers and their biases are f32 in released checkpoints, whatever the rest is. */
static msa_dtype stored_dtype(const msa__parameters *p, const msa__parameter *one)
{
    int32_t f32 = one->spec.kind == MSA__KIND_ROUTER || one->spec.kind == MSA__KIND_ROUTER_BIAS;
    return f32 ? MSA_DTYPE_F32 : p->dtype;
}

static msa_status write_tensor(const msa__parameters *p, const msa__parameter *one, int64_t index,
                               msa__weight_files *files, float *piece)
{
    msa_dtype dtype = stored_dtype(p, one);
    int64_t element = (int64_t)msa_dtype_bytes(dtype);
    uint16_t *rounded = (uint16_t *)(void *)piece;
    for (int64_t at = 0; at < one->n; at += PIECE) {
        int64_t n = one->n - at < PIECE ? one->n - at : PIECE;
        MSA_TRY(msa__parameters_get(p, one, at, n, piece));
        for (int64_t i = 0; dtype == MSA_DTYPE_BF16 && i < n; i++) {
            uint16_t x = f32_to_bf16(piece[i]);
            memcpy(&rounded[i], &x, sizeof(x)); /* behind what is still to be read */
        }
        MSA_TRY(msa__weight_files_write(files, index, at * element, piece, (size_t)(n * element)));
    }
    return MSA_OK;
}

static msa_status write_tensors(const msa__parameters *p, msa__weight_files *files, float *piece)
{
    for (int32_t i = 0; i < p->n_list; i++) {
        const msa__tensor_spec *spec = &p->list[i].spec;
        int64_t shape[2] = {spec->rows, spec->columns}, index;
        MSA_TRY(msa__weight_files_declare(files, spec->name, stored_dtype(p, &p->list[i]),
                                          spec->columns ? 2 : 1, shape, &index));
    }
    for (int32_t i = 0; i < p->n_list; i++) {
        MSA_TRY(write_tensor(p, &p->list[i], i, files, piece));
    }
    return msa__weight_files_finish(files);
}

static msa_status write_model(const msa__snapshot *s, const char *dir, float *piece)
{
    msa__weight_files *files;
    MSA_TRY(msa__weight_files_create(&files, dir));
    msa_status status = write_tensors(s->parameters, files, piece);
    msa__weight_files_destroy(files);
    return status;
}

static msa_status write_text(const char *dir, const char *name, const char *text)
{
    char path[MSA__PATH_BYTES];
    MSA_TRY(msa__path_join(path, sizeof(path), dir, name));
    return msa__file_write(path, text, strlen(text));
}

static msa_status fill_folder(const msa__snapshot *s, const char *dir, float *piece)
{
    static const char *const copied[] = {"tokenizer.json", "tokenizer_config.json",
                                         "special_tokens_map.json", "generation_config.json"};
    MSA_TRY(msa__folder_make(dir));
    MSA_TRY(write_model(s, dir, piece));
    MSA_TRY(write_state(s, dir, piece));
    for (size_t i = 0; i < sizeof(copied) / sizeof(copied[0]); i++) {
        MSA_TRY(msa__folder_copy(s->tokenizer, dir, copied[i]));
    }
    MSA_TRY(write_text(dir, "training.json", s->training_text));
    return write_text(dir, "config.json", s->config_text);
}

msa_status msa__snapshot_write(const msa__snapshot *s)
{
    char path[MSA__PATH_BYTES], hidden[MSA__PATH_BYTES];
    int64_t newest;
    MSA_TRY(msa__folder_newest(s->output, INT64_MAX, &newest));
    if (newest == s->progress->step) return MSA_OK;
    MSA_TRY(msa__folder_of_step(path, s->output, s->progress->step));
    MSA_TRY(msa__path_join(hidden, sizeof(hidden), s->output, ".partial-new"));
    MSA_TRY(msa__folder_remove(hidden));
    float *piece = malloc((size_t)PIECE * sizeof(*piece));
    if (!piece) return MSA_FAIL(MSA_ENOMEM, "train: no memory for a piece of a tensor");
    msa_status status = fill_folder(s, hidden, piece);
    free(piece);
    MSA_TRY(status);
    if (rename(hidden, path) == 0) return MSA_OK;
    return MSA_FAIL(MSA_EIO, "%.300s: %s", path, strerror(errno));
}

/* ---- reading ------------------------------------------------------------------------------ */

static msa_status get_tensor(const msa_safetensors *file, const char *path, const char *name,
                             msa_dtype dtype, int64_t n, msa_tensor *out)
{
    int64_t index = msa_safetensors_find(file, name);
    if (index < 0) return MSA_FAIL(MSA_EFORMAT, "%.300s: tensor %s is missing", path, name);
    MSA_TRY(msa_safetensors_get(file, index, out));
    if (out->dtype == dtype && out->n_dims == 1 && out->shape[0] == n) return MSA_OK;
    return MSA_FAIL(MSA_EFORMAT, "%.300s: tensor %s: must be %s [%" PRId64 "] for this model", path,
                    name, msa_dtype_name(dtype), n);
}

static msa_status check_about(const msa__snapshot *s, const char *path, const int64_t *about)
{
    if (about[ABOUT_VERSION] != VERSION) {
        return MSA_FAIL(MSA_EVERSION, "%.300s: format version %" PRId64 ", must be %d", path,
                        about[ABOUT_VERSION], VERSION);
    }
    if (about[ABOUT_LAYOUT] != (int64_t)layout_fingerprint(s->parameters)) {
        return MSA_FAIL(MSA_EFORMAT, "%.300s: made with another model.config", path);
    }
    if (about[ABOUT_DATA] != (int64_t)s->data) {
        return MSA_FAIL(MSA_EFORMAT, "%.300s: made with other data or another seed", path);
    }
    for (int i = ABOUT_STEP; i <= ABOUT_INDEX_STEPS; i++) {
        if (about[i] >= 0) continue;
        return MSA_FAIL(MSA_EFORMAT, "%.300s: about[%d] = %" PRId64 ", must not be negative", path,
                        i, about[i]);
    }
    return MSA_OK;
}

static void take_about(const msa__snapshot *s, const int64_t *about)
{
    *s->progress = (msa__progress){.step = about[ABOUT_STEP],
                                   .tokens = about[ABOUT_TOKENS],
                                   .stage = about[ABOUT_STAGE],
                                   .stage_step = about[ABOUT_STAGE_STEP],
                                   .stage_tokens = about[ABOUT_STAGE_TOKENS],
                                   .skipped = about[ABOUT_SKIPPED]};
    s->optimizer->backbone_steps = about[ABOUT_BACKBONE_STEPS];
    s->optimizer->index_steps = about[ABOUT_INDEX_STEPS];
}

/* Copies are made from the masters as AdamW makes them: rounded to nearest, ties to even. */
static msa_status put_parameters(msa__parameters *p, const float *masters, const float *biases)
{
    for (int32_t i = 0; i < p->n_list; i++) {
        const msa__parameter *one = &p->list[i];
        const float *from = one->group == MSA__GROUP_ROUTER_BIAS ? biases : masters;
        MSA_TRY(msa__parameters_put(p, one, 0, one->n, from + one->offset));
    }
    return MSA_OK;
}

static msa_status read_state(const msa__snapshot *s, const msa_safetensors *file, const char *path)
{
    msa_tensor about, tensors[N_ARRAYS];
    state_array arrays[N_ARRAYS];
    list_arrays(s->parameters, arrays);
    MSA_TRY(get_tensor(file, path, "about", MSA_DTYPE_I64, N_ABOUT, &about));
    MSA_TRY(check_about(s, path, about.data));
    for (int i = 0; i < N_ARRAYS; i++) {
        MSA_TRY(get_tensor(file, path, arrays[i].name, MSA_DTYPE_F32, arrays[i].n, &tensors[i]));
    }
    for (int i = 1; i <= 2; i++) {
        MSA_TRY(msa_memory_upload(s->parameters->ctx, arrays[i].data, tensors[i].data,
                                  (size_t)arrays[i].n * sizeof(float)));
    }
    MSA_TRY(put_parameters(s->parameters, tensors[0].data, tensors[3].data));
    take_about(s, about.data);
    return MSA_OK;
}

msa_status msa__snapshot_read(const msa__snapshot *s, int64_t step)
{
    char dir[MSA__PATH_BYTES], path[MSA__PATH_BYTES];
    msa_safetensors *file;
    MSA_TRY(msa__folder_of_step(dir, s->output, step));
    MSA_TRY(msa__path_join(path, sizeof(path), dir, STATE_FILE));
    MSA_TRY(msa_safetensors_open(&file, path));
    msa_status status = read_state(s, file, path);
    msa_safetensors_close(file);
    return status;
}
