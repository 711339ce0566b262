/* See layer_fixture.h. */
#define _POSIX_C_SOURCE 200112L /* posix_memalign */

#include "ops/layer_fixture.h"

#include "base/numeric.h"
#include "base/rng.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

const msa_dtype float_dtypes[3] = {MSA_DTYPE_F32, MSA_DTYPE_BF16, MSA_DTYPE_F16};

enum { MAX_BLOCKS = 4096, MAX_CONTEXTS = 16 };

static void *blocks[MAX_BLOCKS];
static int n_blocks;
static void *workspace;
static msa_context *contexts[MAX_CONTEXTS];
static int n_contexts;

static void *aligned_block(size_t bytes)
{
    void *block = NULL;
    assert_int_equal(posix_memalign(&block, 64, bytes ? bytes : 1), 0);
    return block;
}

void *fixture_alloc(size_t bytes)
{
    assert_true(n_blocks < MAX_BLOCKS);
    return blocks[n_blocks++] = aligned_block(bytes);
}

void *fixture_workspace(size_t bytes)
{
    free(workspace);
    workspace = aligned_block(bytes);
    memset(workspace, 0xff, bytes);
    return workspace;
}

int fixture_teardown(void **state)
{
    (void)state;
    while (n_blocks > 0) free(blocks[--n_blocks]);
    free(workspace);
    workspace = NULL;
    while (n_contexts > 0) msa_context_destroy(contexts[--n_contexts]);
    return 0;
}

static int64_t n_rows(const msa_tensor *t)
{
    int64_t n = 1;
    for (int32_t i = 0; i + 1 < t->n_dims; i++) n *= t->shape[i];
    return n;
}

/* Elements from the start of one row to the start of the next, and of the whole memory. */
static int64_t row_pitch(const msa_tensor *t)
{
    return t->n_dims == 1 ? t->shape[0] : t->stride[t->n_dims - 2];
}

static size_t memory_bytes(const msa_tensor *t)
{
    return (size_t)(n_rows(t) * row_pitch(t)) * msa_dtype_bytes(t->dtype);
}

msa_tensor tensor_new(msa_dtype dtype, int32_t n_dims, int64_t d0, int64_t d1, int64_t d2,
                      int64_t pad)
{
    msa_tensor t = msa_tensor_make(NULL, dtype, n_dims, d0, d1, d2, 1);
    int64_t step = t.shape[n_dims - 1] + pad;
    for (int32_t i = n_dims - 2; i >= 0; i--) {
        t.stride[i] = step;
        step *= t.shape[i];
    }
    t.data = fixture_alloc(memory_bytes(&t));
    memset(t.data, 0xff, memory_bytes(&t));
    return t;
}

static int64_t offset_of(const msa_tensor *t, int64_t i, int64_t j, int64_t k)
{
    int64_t index[3] = {i, j, k}, offset = 0;
    for (int32_t d = 0; d < t->n_dims; d++) offset += index[d] * t->stride[d];
    return offset;
}

double tensor_at(const msa_tensor *t, int64_t i, int64_t j, int64_t k)
{
    return (double)load_f32(t->data, t->dtype, offset_of(t, i, j, k));
}

void tensor_set(const msa_tensor *t, int64_t i, int64_t j, int64_t k, double value)
{
    store_f32(t->data, t->dtype, offset_of(t, i, j, k), (float)value);
}

double test_uniform(uint64_t seed, uint64_t index)
{
    uint32_t words[4];
    msa__philox(seed, index, 0, words);
    return (double)msa__uniform(words[0]);
}

void tensor_fill(const msa_tensor *t, uint64_t seed, double scale)
{
    int64_t last = t->shape[t->n_dims - 1];
    for (int64_t row = 0; row < n_rows(t); row++) {
        for (int64_t i = 0; i < last; i++) {
            double u = test_uniform(seed, (uint64_t)(row * last + i));
            store_f32(t->data, t->dtype, row * row_pitch(t) + i, (float)(scale * (2 * u - 1)));
        }
    }
}

msa_tensor tensor_clone(const msa_tensor *t)
{
    msa_tensor copy = *t;
    copy.data = fixture_alloc(memory_bytes(t));
    memcpy(copy.data, t->data, memory_bytes(t));
    return copy;
}

void expect_same_bytes(const msa_tensor *a, const msa_tensor *b, const char *what)
{
    if (memcmp(a->data, b->data, memory_bytes(a))) fail_msg("%s: bytes differ", what);
}

void expect_padding_untouched(const msa_tensor *t, const char *what)
{
    size_t element = msa_dtype_bytes(t->dtype), row_bytes = (size_t)row_pitch(t) * element;
    for (int64_t row = 0; row < n_rows(t); row++) {
        const unsigned char *bytes = (const unsigned char *)t->data + (size_t)row * row_bytes;
        for (size_t i = (size_t)t->shape[t->n_dims - 1] * element; i < row_bytes; i++) {
            if (bytes[i] != 0xff) fail_msg("%s: wrote behind row %lld", what, (long long)row);
        }
    }
}

msa_weight weight_new(msa_dtype dtype, int64_t n_out, int64_t n_in, int64_t pad, uint64_t seed,
                      double scale)
{
    msa_weight weight;
    memset(&weight, 0, sizeof(weight));
    weight.w = tensor_new(dtype, 2, n_out, n_in, 1, pad);
    if (dtype != MSA_DTYPE_F8_E4M3) {
        tensor_fill(&weight.w, seed, scale);
        return weight;
    }
    tensor_fill(&weight.w, seed, 400);
    int exponent = (int)lround(log2(scale / 400));
    weight.scales = tensor_new(MSA_DTYPE_U8, 2, n_out, n_in / 32, 1, pad);
    for (int64_t row = 0; row < n_out; row++) {
        for (int64_t i = 0; i < n_in / 32; i++) {
            int spread = (int)(test_uniform(seed + 1, (uint64_t)(row * n_in + i)) * 5) - 2;
            ((uint8_t *)weight.scales.data)[offset_of(&weight.scales, row, i, 0)] =
                (uint8_t)(127 + exponent + spread);
        }
    }
    return weight;
}

double weight_value(const msa_weight *weight, int64_t row, int64_t column)
{
    double value = tensor_at(&weight->w, row, column, 0);
    if (weight->w.dtype != MSA_DTYPE_F8_E4M3) return value;
    const uint8_t *scales = weight->scales.data;
    return ldexp(value, scales[offset_of(&weight->scales, row, column / 32, 0)] - 127);
}

double rounded(msa_dtype dtype, double value)
{
    float stored;
    store_f32(&stored, dtype, 0, (float)value);
    return (double)load_f32(&stored, dtype, 0);
}

double exact_activation(const msa_activation *activation, double gate, double up)
{
    if (activation->kind == MSA_ACT_SILU) return up * gate / (1 + exp(-gate));
    double limit = (double)activation->limit;
    gate = gate > limit ? limit : gate;
    up = up > limit ? limit : up < -limit ? -limit : up;
    return (up + (double)activation->beta) * gate / (1 + exp(-(double)activation->alpha * gate));
}

/* The floor lets a naive result that happens to be exact be missed by the last bits of f32. */
void expect_close(const msa_tensor *t, const double *oracle, const float *naive, const char *what)
{
    int64_t last = t->shape[t->n_dims - 1];
    double naive_error = 0, largest = 0;
    for (int64_t i = 0; i < n_rows(t) * last; i++) {
        if (!isfinite(oracle[i])) continue;
        naive_error = fmax(naive_error, fabs(rounded(t->dtype, (double)naive[i]) - oracle[i]));
        largest = fmax(largest, fabs(oracle[i]));
    }
    double limit = 2 * naive_error + 0x1p-22 * largest;
    for (int64_t row = 0; row < n_rows(t); row++) {
        for (int64_t i = 0; i < last; i++) {
            double expected = oracle[row * last + i];
            double actual = (double)load_f32(t->data, t->dtype, row * row_pitch(t) + i);
            int good = isnan(expected)   ? isnan(actual)
                       : isinf(expected) ? actual == expected
                                         : fabs(actual - expected) <= limit;
            if (!good) {
                fail_msg("%s: row %lld element %lld is %.9g, must be %.9g within %.3g", what,
                         (long long)row, (long long)i, actual, expected, limit);
            }
        }
    }
}

const char *test_backend(void)
{
    return getenv("MSA_TEST_BACKEND");
}

msa_context *open_test_context(const char *backend, const char *isa, int32_t n_threads)
{
    msa_context_args args;
    msa_context_args_init(&args);
    args.backend = backend;
    args.cpu_isa = isa;
    args.n_threads = n_threads;
    msa_context *ctx;
    msa_status status = msa_context_create(&ctx, &args);
    if (status == MSA_EUNSUPPORTED && test_backend()) {
        printf("skipped: %s\n", msa_last_error());
        exit(77);
    }
    EXPECT_OK(status);
    return ctx;
}

/* A program that is to test a backend which cannot run here ends before it prepares anything. */
__attribute__((constructor)) static void skip_without_backend(void)
{
    if (test_backend()) msa_context_destroy(open_test_context(test_backend(), NULL, 1));
}

static void open_context(const char *backend, const char *isa, int32_t n_threads)
{
    assert_true(n_contexts < MAX_CONTEXTS);
    contexts[n_contexts++] = open_test_context(backend, isa, n_threads);
}

msa_context *context_at(int32_t i)
{
    if (n_contexts == 0 && test_backend()) {
        open_context(test_backend(), NULL, 1);
    } else if (n_contexts == 0) {
        const char *isa;
        int32_t usable;
        open_context("ref", NULL, 1);
        for (int32_t n = 0; (isa = msa_cpu_isa_name(n, &usable)) != NULL; n++) {
            if (!usable) continue;
            open_context("cpu", isa, 1);
            open_context("cpu", isa, 3);
        }
    }
    return i < n_contexts ? contexts[i] : NULL;
}

const char *context_label(const msa_context *ctx)
{
    static char label[64];
    snprintf(label, sizeof(label), "%s %s, %d threads", msa_context_backend(ctx),
             msa_context_isa(ctx), msa_context_threads(ctx));
    return label;
}
