/* Looking for NaN and infinity in every tensor; see verify.h.
 *
 * In each of our formats the values to refuse are those whose exponent bits (fp8 and E8M0: all
 * value bits) are all ones, so one masked comparison per element finds them and vectorises.
 */
#include "model/verify.h"

#include "base/error.h"
#include "model/safetensors.h"

#include <string.h>

#define PIECE 65536

#define DEFINE_HAS_BAD(type)                                                                       \
    static int32_t has_bad_##type(const void *data, int64_t n, uint32_t mask)                      \
    {                                                                                              \
        const type *x = data;                                                                      \
        int32_t bad = 0;                                                                           \
        for (int64_t i = 0; i < n; i++) bad |= (x[i] & (type)mask) == (type)mask;                  \
        return bad;                                                                                \
    }
DEFINE_HAS_BAD(uint8_t)
DEFINE_HAS_BAD(uint16_t)
DEFINE_HAS_BAD(uint32_t)

typedef struct format {
    int32_t (*has_bad)(const void *data, int64_t n, uint32_t mask);
    uint32_t mask;
    size_t bytes;
} format;

static int32_t find_format(const char *name, msa_dtype dtype, format *out)
{
    static const char suffix[] = "_scale_inv";
    size_t n = strlen(name), n_suffix = sizeof(suffix) - 1;
    int32_t is_scale = n > n_suffix && !strcmp(name + n - n_suffix, suffix);
    static const format f32 = {has_bad_uint32_t, 0x7f800000u, 4};
    static const format bf16 = {has_bad_uint16_t, 0x7f80u, 2};
    static const format f16 = {has_bad_uint16_t, 0x7c00u, 2};
    static const format f8 = {has_bad_uint8_t, 0x7fu, 1};
    static const format e8m0 = {has_bad_uint8_t, 0xffu, 1};
    if (dtype == MSA_DTYPE_F32)
        *out = f32;
    else if (dtype == MSA_DTYPE_BF16)
        *out = bf16;
    else if (dtype == MSA_DTYPE_F16)
        *out = f16;
    else if (dtype == MSA_DTYPE_F8_E4M3)
        *out = f8;
    else if (dtype == MSA_DTYPE_U8 && is_scale)
        *out = e8m0;
    else
        return 0;
    return 1;
}

typedef struct progress_state {
    msa_progress_fn report;
    void *user;
    int64_t done, total;
} progress_state;

static msa_status verify_tensor(const char *path, const char *name, const msa_tensor *tensor,
                                progress_state *progress)
{
    format f;
    if (!tensor->data || !find_format(name, tensor->dtype, &f)) return MSA_OK;
    int64_t n = 1;
    for (int32_t i = 0; i < tensor->n_dims; i++) n *= tensor->shape[i];
    const char *data = tensor->data;
    for (int64_t at = 0; at < n; at += PIECE) {
        int64_t count = n - at < PIECE ? n - at : PIECE;
        if (f.has_bad(data + (size_t)at * f.bytes, count, f.mask)) {
            while (!f.has_bad(data + (size_t)at * f.bytes, 1, f.mask)) at++;
            return MSA_FAIL(MSA_EFORMAT, "%.200s: tensor %.120s: element %lld is not finite", path,
                            name, (long long)at);
        }
        progress->done += count * (int64_t)f.bytes;
        if (progress->report) progress->report(progress->user, progress->done, progress->total);
    }
    return MSA_OK;
}

msa_status msa__checkpoint_verify(const msa__checkpoint *c, msa_progress_fn report, void *user)
{
    progress_state progress = {report, user, 0, 0};
    for (int32_t f = 0; f < c->n_files; f++) {
        progress.total += (int64_t)msa__safetensors_data_bytes(c->files[f]);
    }
    for (int32_t f = 0; f < c->n_files; f++) {
        for (int64_t t = 0; t < msa_safetensors_count(c->files[f]); t++) {
            msa_tensor tensor;
            if (msa_safetensors_get(c->files[f], t, &tensor) != MSA_OK) continue;
            MSA_TRY(verify_tensor(msa__safetensors_path(c->files[f]),
                                  msa_safetensors_name(c->files[f], t), &tensor, &progress));
        }
    }
    if (report) report(user, progress.total, progress.total);
    return MSA_OK;
}
