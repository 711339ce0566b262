/* What the tests of gradients share: central differences of a loss in float64, and closeness to the
 * reference. */
#ifndef MSA_TESTS_LAYER_GRADIENT_H
#define MSA_TESTS_LAYER_GRADIENT_H

#include "harness/reduced.h"
#include "ops/layer_fixture.h"

#include <stdlib.h>

/* The reference backend, whatever backend is tested; it lasts until fixture_teardown. */
msa_context *reference_context(void);

/* A tensor of f32 with the shape and values of another; the same without padding. */
msa_tensor tensor_as_f32(const msa_tensor *t);

/* A loss in float64, from the numbers the operator reads. */
typedef double (*loss_fn)(const void *args);

/* start (zero where it has no data) plus the slopes of the loss by every element of x, an f32
 * tensor that the loss reads: f32, with the shape of x. */
msa_tensor slopes_of(loss_fn loss, const void *args, const msa_tensor *x, const msa_tensor *start);

/* Every element within relative * the largest exact one, and the rounding of t's dtype. */
void expect_near(const msa_tensor *t, const msa_tensor *exact, double relative, const char *what);

/* The same for every head of [T, heads, D] by itself: a large one hides nothing of a small one. */
void expect_near_heads(const msa_tensor *t, const msa_tensor *exact, double relative,
                       const char *what);

/* Error classes: slopes by differences, sums in f32, products of numbers rounded to bf16. */
#define NEAR_SLOPE 2e-4
#define NEAR_F32   1e-5
#define NEAR_BF16  1.5e-2

#endif
