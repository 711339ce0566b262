/* What the tests of layer operators share: strided tensors between poison, the contexts to run on,
 * and the tolerance class "twice the error of a plain implementation in f32, rounded once". */
#ifndef MSA_TESTS_LAYER_FIXTURE_H
#define MSA_TESTS_LAYER_FIXTURE_H

#include "harness/cmocka_all.h"

#include "msa/msa.h"
#include "ops/calls.h"

/* Memory of a test, freed by fixture_teardown. */
void *fixture_alloc(size_t bytes);
int fixture_teardown(void **state);

/* A workspace of exactly that size, full of NaN; it lasts until the next call. */
void *fixture_workspace(size_t bytes);

/* Every byte 0xff, which is NaN in each float dtype; `pad` elements follow each row. */
msa_tensor tensor_new(msa_dtype dtype, int32_t n_dims, int64_t d0, int64_t d1, int64_t d2,
                      int64_t pad);
void tensor_fill(const msa_tensor *t, uint64_t seed, double scale); /* uniform in +-scale */
double tensor_at(const msa_tensor *t, int64_t i, int64_t j, int64_t k);
void tensor_set(const msa_tensor *t, int64_t i, int64_t j, int64_t k, double value);
msa_tensor tensor_clone(const msa_tensor *t); /* the padding too */
void expect_same_bytes(const msa_tensor *a, const msa_tensor *b, const char *what);
void expect_padding_untouched(const msa_tensor *t, const char *what);

/* Uniform in [0, 1). */
double test_uniform(uint64_t seed, uint64_t index);

/* Weights of every dtype: fp8 gets scales. */
msa_weight weight_new(msa_dtype dtype, int64_t n_out, int64_t n_in, int64_t pad, uint64_t seed,
                      double scale);
double weight_value(const msa_weight *weight, int64_t row, int64_t column);

/* A value as it would be stored. */
double rounded(msa_dtype dtype, double value);

/* One element of a gated MLP's hidden row, (L4) and (L5). */
double exact_activation(const msa_activation *activation, double gate, double up);

/* Every element of t against the oracle, in row order. naive holds a plain f32 computation whose
 * rounding to t's dtype sets the tolerance. A NaN or infinity must be met exactly. */
void expect_close(const msa_tensor *t, const double *oracle, const float *naive, const char *what);

/* The backend of MSA_TEST_BACKEND, to which a run of the tests is then confined; else NULL. */
const char *test_backend(void);
/* The caller's: msa_context_destroy. When the test backend has no device here, the program prints
 * why and ends as skipped. */
msa_context *open_test_context(const char *backend, const char *isa, int32_t n_threads);

/* The i-th context: ref, then cpu with 1 and 3 threads for every usable ISA; or the test backend's
 * alone. NULL past the end. */
msa_context *context_at(int32_t i);
const char *context_label(const msa_context *ctx);

extern const msa_dtype float_dtypes[3];

#endif
