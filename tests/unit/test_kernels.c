/* Every micro-kernel table against its definition in kernels.h.
 *
 * A plain program, without cmocka, so that it can also be built for another architecture and run
 * under an emulator. Sources lie between inaccessible pages and are surrounded by NaN where they
 * have gaps: a kernel that reads past its operands crashes or gives a NaN.
 */
#define _GNU_SOURCE
#include "backend/cpu/isa/kernels.h"
#include "base/numeric.h"
#include "base/rng.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

static const msa__cpu_kernels *kernels;
static int n_failures;

#define CHECK(condition, ...)                                                                      \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            printf("FAIL %s %s: ", kernels->name, __func__);                                       \
            printf(__VA_ARGS__);                                                                   \
            printf("\n");                                                                          \
            n_failures++;                                                                          \
            return;                                                                                \
        }                                                                                          \
    } while (0)

/* ---- memory between guard pages ------------------------------------------------------------ */

#define GUARD_BYTES 65536
#define ARENA_BYTES (1 << 20)

typedef struct {
    unsigned char *base; /* ARENA_BYTES with a guard before and after */
} arena;

static arena new_arena(void)
{
    arena it;
    unsigned char *all =
        mmap(NULL, ARENA_BYTES + 2 * GUARD_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (all == MAP_FAILED || mprotect(all + GUARD_BYTES, ARENA_BYTES, PROT_READ | PROT_WRITE)) {
        perror("mmap");
        exit(1);
    }
    it.base = all + GUARD_BYTES;
    return it;
}

/* `bytes` that end right before the guard, or start right after it. */
static void *place(arena it, size_t bytes, int at_end)
{
    return at_end ? it.base + ARENA_BYTES - bytes : it.base;
}

static arena arena_a, arena_b, arena_c;

/* ---- random operands ----------------------------------------------------------------------- */

static uint64_t draws;

static uint32_t random_word(void)
{
    uint32_t words[4];
    msa__philox(42, draws++, 0, words);
    return words[0];
}

static float random_value(void)
{
    return msa__uniform(random_word()) * 2.0f - 1.0f;
}

static const msa_dtype float_dtypes[] = {0, 1, 2, 3};

/* Rows of k values with NaN in the gap up to ld; the last row has no gap. */
static void fill_rows(void *data, msa_dtype dtype, int64_t rows, int64_t k, int64_t ld)
{
    unsigned char one[4];
    size_t size = msa_dtype_bytes(dtype);
    for (int64_t i = 0; i < rows; i++) {
        int64_t end = i + 1 < rows ? ld : k;
        for (int64_t l = 0; l < end; l++) {
            store_f32(one, dtype, 0, l < k ? random_value() : NAN);
            memcpy((unsigned char *)data + (size_t)(i * ld + l) * size, one, size);
        }
    }
}

/* ---- conversions --------------------------------------------------------------------------- */

static int same_float(float x, float y)
{
    return isnan(x) ? isnan(y) : f32_bits(x) == f32_bits(y);
}

static void test_widening_is_exact(void)
{
    static uint16_t codes[0x10000], halves[0x10000];
    static float out[0x10000];
    for (int i = 0; i < 0x10000; i++) codes[i] = (uint16_t)i;
    for (msa_dtype dtype = MSA_DTYPE_BF16; dtype <= MSA_DTYPE_F16; dtype++) {
        kernels->to_f32(out, codes, dtype, 0x10000);
        kernels->to_bf16(halves, codes, dtype, 0x10000);
        for (int i = 0; i < 0x10000; i++) {
            float x = load_f32(codes, dtype, i);
            CHECK(same_float(out[i], x), "%s %04x", msa_dtype_name(dtype), i);
            CHECK(same_float(bf16_to_f32(halves[i]), bf16_to_f32(f32_to_bf16(x))),
                  "%s %04x to bf16", msa_dtype_name(dtype), i);
        }
    }
    uint8_t bytes[256];
    for (int i = 0; i < 256; i++) bytes[i] = (uint8_t)i;
    kernels->to_f32(out, bytes, MSA_DTYPE_F8_E4M3, 256);
    kernels->to_bf16(halves, bytes, MSA_DTYPE_F8_E4M3, 256);
    for (int i = 0; i < 256; i++) {
        CHECK(same_float(out[i], fp8_to_f32(bytes[i])), "fp8 %02x", i);
        CHECK(same_float(bf16_to_f32(halves[i]), fp8_to_f32(bytes[i])), "fp8 %02x to bf16", i);
    }
}

/* Every exponent and sign with the low bits that decide roundings: exact, just below, half, above.
 */
static void test_narrowing_rounds_as_the_scalar_code(void)
{
    static const uint32_t low_bits[] = {0, 1, 0x7fff, 0x8000, 0x8001, 0xffff, 0x0fff, 0x1000};
    static float in[0x10000];
    static uint16_t out[0x10000];
    for (int v = 0; v < 8; v++) {
        for (uint32_t i = 0; i < 0x10000; i++) in[i] = f32_from_bits(i << 16 | low_bits[v]);
        for (msa_dtype dtype = MSA_DTYPE_F32; dtype <= MSA_DTYPE_F8_E4M3; dtype++) {
            static float wide[0x10000];
            void *dst = dtype == MSA_DTYPE_F32 ? (void *)wide : (void *)out;
            kernels->from_f32(dst, dtype, in, 0x10000);
            for (int i = 0; i < 0x10000; i++) {
                unsigned char one[4];
                store_f32(one, dtype, 0, in[i]);
                CHECK(same_float(load_f32(dst, dtype, i), load_f32(one, dtype, 0)), "%s of %a",
                      msa_dtype_name(dtype), (double)in[i]);
            }
        }
        kernels->to_bf16(out, in, MSA_DTYPE_F32, 0x10000);
        for (int i = 0; i < 0x10000; i++) {
            CHECK(same_float(bf16_to_f32(out[i]), bf16_to_f32(f32_to_bf16(in[i]))), "to_bf16 of %a",
                  (double)in[i]);
        }
    }
}

/* All lengths up to two vectors: reads end at the guard, writes stop at the sentinel. */
static void test_conversion_lengths(void)
{
    for (int64_t n = 0; n <= 67; n++) {
        for (int d = 0; d < 4; d++) {
            msa_dtype dtype = float_dtypes[d];
            size_t size = msa_dtype_bytes(dtype);
            void *src = place(arena_a, (size_t)n * size, 1);
            float wide[68];
            uint16_t half[68];
            unsigned char back[68 * 4];
            fill_rows(src, dtype, 1, n, n);
            wide[n] = 77.0f;
            half[n] = 77;
            memset(back, 0x5a, sizeof(back));
            kernels->to_f32(wide, src, dtype, n);
            kernels->to_bf16(half, src, dtype, n);
            kernels->from_f32(back, dtype, wide, n);
            CHECK(wide[n] == 77.0f && half[n] == 77 && back[(size_t)n * size] == 0x5a,
                  "wrote past n = %d", (int)n);
            CHECK(!memcmp(back, src, (size_t)n * size), "round trip n = %d", (int)n);
            for (int64_t i = 0; i < n; i++) {
                CHECK(half[i] == f32_to_bf16(wide[i]), "to_bf16 n = %d", (int)n);
            }
        }
    }
}

/* ---- packing ------------------------------------------------------------------------------- */

static float panel_f32(const float *panels, int64_t k, int64_t l, int64_t j)
{
    return panels[(j / 16) * 16 * k + l * 16 + j % 16];
}

static float panel_bf16(const uint16_t *panels, int64_t k, int64_t l, int64_t j)
{
    int64_t panel_size = 32 * ((k + 1) / 2);
    return bf16_to_f32(panels[(j / 16) * panel_size + (l / 2) * 32 + (j % 16) * 2 + (l & 1)]);
}

static void check_columns(msa_dtype dtype, int64_t n_rows, int64_t k, int at_end)
{
    size_t size = msa_dtype_bytes(dtype);
    int64_t ld = k + 3;
    size_t bytes = n_rows ? (size_t)((n_rows - 1) * ld + k) * size : 0;
    void *src = place(arena_a, bytes, at_end);
    float *wide = place(arena_b, (size_t)(16 * k) * 4, 1);
    uint16_t *half = place(arena_c, (size_t)(16 * (k + (k & 1))) * 2, 1);
    fill_rows(src, dtype, n_rows, k, ld);
    kernels->pack_columns_f32(wide, src, dtype, ld, n_rows, k);
    kernels->pack_columns_bf16(half, src, dtype, ld, n_rows, k);
    for (int64_t j = 0; j < 16; j++) {
        for (int64_t l = 0; l < k + (k & 1); l++) {
            float x = j < n_rows && l < k ? load_f32(src, dtype, j * ld + l) : 0.0f;
            if (l < k) {
                CHECK(panel_f32(wide, k, l, j) == x, "f32 from %s rows %d k %d at %d,%d",
                      msa_dtype_name(dtype), (int)n_rows, (int)k, (int)l, (int)j);
            }
            CHECK(panel_bf16(half, k, l, j) == bf16_to_f32(f32_to_bf16(x)),
                  "bf16 from %s rows %d k %d at %d,%d", msa_dtype_name(dtype), (int)n_rows, (int)k,
                  (int)l, (int)j);
        }
    }
}

static void check_rows(msa_dtype dtype, int64_t n_rows, int64_t k, int64_t n, int at_end)
{
    size_t size = msa_dtype_bytes(dtype);
    int64_t ld = n + 5;
    size_t bytes = n_rows ? (size_t)((n_rows - 1) * ld + n) * size : 0;
    void *src = place(arena_a, bytes, at_end);
    float *wide = place(arena_b, (size_t)(n * k) * 4, 1);
    uint16_t *half = place(arena_c, (size_t)(n * (k + (k & 1))) * 2, 1);
    fill_rows(src, dtype, n_rows, n, ld);
    kernels->pack_rows_f32(wide, src, dtype, ld, n_rows, k, n);
    kernels->pack_rows_bf16(half, src, dtype, ld, n_rows, k, n);
    for (int64_t j = 0; j < n; j++) {
        for (int64_t l = 0; l < k + (k & 1); l++) {
            float x = l < n_rows ? load_f32(src, dtype, l * ld + j) : 0.0f;
            if (l < k) {
                CHECK(panel_f32(wide, k, l, j) == x, "f32 from %s rows %d of %d n %d at %d,%d",
                      msa_dtype_name(dtype), (int)n_rows, (int)k, (int)n, (int)l, (int)j);
            }
            CHECK(panel_bf16(half, k, l, j) == bf16_to_f32(f32_to_bf16(x)),
                  "bf16 from %s rows %d of %d n %d at %d,%d", msa_dtype_name(dtype), (int)n_rows,
                  (int)k, (int)n, (int)l, (int)j);
        }
    }
}

static void test_packing(void)
{
    static const int64_t ks[] = {1, 2, 7, 8, 15, 16, 31, 32, 33, 63, 80, 128};
    for (int d = 0; d < 4; d++) {
        for (size_t i = 0; i < sizeof(ks) / sizeof(ks[0]); i++) {
            for (int64_t n_rows = 0; n_rows <= 16; n_rows += n_rows == 0 || n_rows == 15 ? 1 : 7) {
                check_columns(float_dtypes[d], n_rows, ks[i], (int)(i & 1));
            }
            for (int64_t n = 16; n <= 48; n += 16) {
                check_rows(float_dtypes[d], ks[i], ks[i], n, (int)(i & 1));
                check_rows(float_dtypes[d], ks[i] / 2, ks[i], n, 1);
                check_rows(float_dtypes[d], 0, ks[i], n, 1);
            }
        }
    }
}

/* ---- matrix product ------------------------------------------------------------------------ */

typedef struct {
    msa_dtype dtype; /* of A and B: f32 or bf16 */
    int64_t m, n_panels, k, lda, ldc;
    const unsigned char *a;
    unsigned char *b;
    float *c;
} product;

static size_t panel_bytes(const product *g)
{
    return g->dtype == MSA_DTYPE_F32 ? (size_t)g->k * 64 : (size_t)(g->k + (g->k & 1)) * 32;
}

/* Operands at the guards; `odd` shifts A to an odd address as a mapped file may. */
static product new_product(msa_dtype dtype, int64_t m, int64_t n_panels, int64_t k, int at_end,
                           int odd)
{
    product g = {.dtype = dtype, .m = m, .n_panels = n_panels, .k = k};
    g.lda = k + (m & 7);
    g.ldc = 16 * n_panels + (k & 3);
    size_t bytes = (size_t)((m - 1) * g.lda + k) * msa_dtype_bytes(dtype);
    unsigned char *a = place(arena_a, bytes + (size_t)odd, at_end);
    if (!at_end) a += odd;
    fill_rows(a, dtype, m, k, g.lda);
    g.a = a;
    g.b = place(arena_b, panel_bytes(&g) * (size_t)n_panels, 1);
    float *columns = malloc((size_t)(16 * k) * sizeof(float));
    for (int64_t p = 0; p < n_panels; p++) {
        for (int64_t i = 0; i < 16 * k; i++) columns[i] = random_value();
        if (dtype == MSA_DTYPE_F32) {
            kernels->pack_columns_f32((float *)(void *)(g.b + (size_t)p * panel_bytes(&g)), columns,
                                      MSA_DTYPE_F32, k, 16, k);
        } else {
            kernels->pack_columns_bf16((uint16_t *)(void *)(g.b + (size_t)p * panel_bytes(&g)),
                                       columns, MSA_DTYPE_F32, k, 16, k);
        }
    }
    free(columns);
    g.c = place(arena_c, (size_t)((m - 1) * g.ldc + 16 * n_panels) * sizeof(float), 1);
    return g;
}

/* Rows i0.. and panels p0.. of the product into c. */
static void multiply(const product *g, int64_t i0, int64_t m, int64_t p0, int64_t n_panels,
                     float *c, int32_t accumulate)
{
    const void *a = g->a + (size_t)(i0 * g->lda) * msa_dtype_bytes(g->dtype);
    const void *b = g->b + (size_t)p0 * panel_bytes(g);
    if (g->dtype == MSA_DTYPE_F32) {
        kernels->gemm_f32(m, n_panels, g->k, a, g->lda, b, c, g->ldc, accumulate);
    } else {
        kernels->enter();
        kernels->gemm_bf16(m, n_panels, g->k, a, g->lda, b, c, g->ldc, accumulate);
        kernels->leave();
    }
}

static float element_of_b(const product *g, int64_t l, int64_t j)
{
    return g->dtype == MSA_DTYPE_F32 ? panel_f32((const float *)(const void *)g->b, g->k, l, j)
                                     : panel_bf16((const uint16_t *)(const void *)g->b, g->k, l, j);
}

/* Against double sums. A chain of k f32 additions errs by at most about k 2^-24 of sum |a b|. */
static void check_product(msa_dtype dtype, int64_t m, int64_t n_panels, int64_t k,
                          int32_t accumulate)
{
    product g =
        new_product(dtype, m, n_panels, k, (int)(k & 1) | (int)(m & 1), (int)((m >> 1) & 1));
    int64_t extent = (m - 1) * g.ldc + 16 * n_panels;
    for (int64_t i = 0; i < extent; i++) g.c[i] = 3.0f;
    multiply(&g, 0, m, 0, n_panels, g.c, accumulate);
    for (int64_t i = 0; i < m; i++) {
        for (int64_t j = 0; j < (i + 1 < m ? g.ldc : 16 * n_panels); j++) {
            float got = g.c[i * g.ldc + j];
            if (j >= 16 * n_panels) {
                CHECK(got == 3.0f, "wrote between rows: m %d panels %d k %d", (int)m, (int)n_panels,
                      (int)k);
                continue;
            }
            double sum = accumulate ? 3.0 : 0.0, magnitude = fabs(sum);
            for (int64_t l = 0; l < k; l++) {
                double term =
                    (double)load_f32(g.a, dtype, i * g.lda + l) * (double)element_of_b(&g, l, j);
                sum += term;
                magnitude += fabs(term);
            }
            CHECK(fabs((double)got - sum) <= (double)(k + 2) * 0x1p-24 * magnitude,
                  "%s m %d panels %d k %d: C[%d,%d] = %g, want %g", msa_dtype_name(dtype), (int)m,
                  (int)n_panels, (int)k, (int)i, (int)j, (double)got, sum);
        }
    }
}

static void test_products(void)
{
    static const int64_t ks[] = {1, 2, 3, 16, 31, 32, 33, 64, 80, 127, 128, 200};
    static const int64_t ms[] = {1, 2, 5, 15, 16, 17, 31, 32, 33, 50};
    for (size_t i = 0; i < sizeof(ks) / sizeof(ks[0]); i++) {
        for (size_t j = 0; j < sizeof(ms) / sizeof(ms[0]); j++) {
            int64_t n_panels = 1 + (int64_t)((i + j) % 3);
            check_product(MSA_DTYPE_F32, ms[j], n_panels, ks[i], (int32_t)(j & 1));
            check_product(MSA_DTYPE_BF16, ms[j], n_panels, ks[i], (int32_t)(i & 1));
        }
    }
}

/* An element has the same bits whatever part of C is asked for. */
static void test_order_does_not_depend_on_the_cut(void)
{
    enum { m = 53, panels = 5 };
    for (int d = 0; d < 2; d++) {
        for (int32_t accumulate = 0; accumulate < 2; accumulate++) {
            product g = new_product(float_dtypes[d], m, panels, 75, 1, 0);
            size_t extent = (size_t)((m - 1) * g.ldc + 16 * panels);
            float *part = malloc(extent * sizeof(float));
            for (size_t i = 0; i < extent; i++) g.c[i] = 0.25f;
            multiply(&g, 0, m, 0, panels, g.c, accumulate);
            int64_t wrong = 0;
            for (int cut = 0; cut < 40; cut++) {
                int64_t i0 = random_word() % m, p0 = random_word() % panels;
                int64_t rows = 1 + random_word() % (uint32_t)(m - i0);
                int64_t n = 1 + random_word() % (uint32_t)(panels - p0);
                for (size_t i = 0; i < extent; i++) part[i] = 0.25f;
                multiply(&g, i0, rows, p0, n, part, accumulate);
                for (int64_t i = 0; i < rows; i++) {
                    const float *whole = g.c + (i0 + i) * g.ldc + 16 * p0;
                    wrong += memcmp(part + i * g.ldc, whole, (size_t)(16 * n) * sizeof(float)) != 0;
                }
            }
            free(part);
            CHECK(wrong == 0, "%s: %d rows differ", msa_dtype_name(float_dtypes[d]), (int)wrong);
        }
    }
}

static void test_gemv_has_the_bits_of_gemm(void)
{
    static const int64_t ks[] = {1, 2, 7, 16, 17, 31, 32, 33, 75, 96};
    for (int d = 0; d < 2; d++) {
        for (size_t i = 0; i < sizeof(ks) / sizeof(ks[0]); i++) {
            for (int64_t m = 1; m <= 50; m += m < 18 ? 1 : 7) {
                product g = new_product(float_dtypes[d], m, 1, ks[i], 1, (int)(m & 1));
                float narrow[50 * 19];
                int32_t accumulate = (int32_t)(m >> 1 & 1);
                for (int64_t e = 0; e < (m - 1) * g.ldc + 16; e++) g.c[e] = 0.75f;
                multiply(&g, 0, m, 0, 1, g.c, accumulate);
                for (int64_t n = 1; n <= MSA__GEMV_COLUMNS; n++) {
                    for (int64_t e = 0; e < 50 * 19; e++) narrow[e] = 0.75f;
                    kernels->enter();
                    if (d == 0) {
                        kernels->gemv_f32(m, n, g.k, (const float *)(const void *)g.a, g.lda,
                                          (const float *)(const void *)g.b, narrow, g.ldc,
                                          accumulate);
                    } else {
                        kernels->gemv_bf16(m, n, g.k, (const uint16_t *)(const void *)g.a, g.lda,
                                           (const uint16_t *)(const void *)g.b, narrow, g.ldc,
                                           accumulate);
                    }
                    kernels->leave();
                    for (int64_t r = 0; r < m; r++) {
                        CHECK(!memcmp(narrow + r * g.ldc, g.c + r * g.ldc, (size_t)n * 4),
                              "%s m %d k %d columns %d: row %d differs",
                              msa_dtype_name(float_dtypes[d]), (int)m, (int)g.k, (int)n, (int)r);
                    }
                }
            }
        }
    }
}

/* Every code under every scale. */
static void test_mxfp8(void)
{
    uint8_t codes[256], scales[8];
    uint16_t out[256];
    for (int i = 0; i < 256; i++) codes[i] = (uint8_t)i;
    for (int scale = 0; scale < 256; scale++) {
        for (int i = 0; i < 8; i++) scales[i] = (uint8_t)(i & 1 ? 255 - scale : scale);
        kernels->mxfp8_to_bf16(out, codes, scales, 256);
        for (int i = 0; i < 256; i++) {
            float x = fp8_to_f32(codes[i]) * e8m0_to_f32(scales[i / 32]);
            CHECK(same_float(bf16_to_f32(out[i]), bf16_to_f32(f32_to_bf16(x))),
                  "code %02x scale %d", i, scales[i / 32]);
        }
    }
}

static void check_unpack(msa_dtype dtype, int64_t n, int64_t n_columns, int32_t accumulate)
{
    int64_t ld = n + 2, ldc = n_columns + 3;
    size_t size = msa_dtype_bytes(dtype);
    float *c = place(arena_a, (size_t)((n - 1) * ldc + n_columns) * 4, 1);
    size_t bytes = (size_t)((n_columns - 1) * ld + n) * size;
    void *dst = place(arena_b, bytes, 1), *want = place(arena_c, bytes, 1);
    fill_rows(c, MSA_DTYPE_F32, n, n_columns, ldc);
    fill_rows(dst, dtype, n_columns, n, ld);
    memcpy(want, dst, bytes);
    for (int64_t j = 0; j < n_columns; j++) {
        for (int64_t i = 0; i < n; i++) {
            float x = c[i * ldc + j];
            if (accumulate) x += load_f32(want, dtype, j * ld + i);
            store_f32(want, dtype, j * ld + i, x);
        }
    }
    kernels->unpack_columns(dst, dtype, ld, c, ldc, n_columns, n, accumulate);
    CHECK(!memcmp(dst, want, bytes), "%s n %d columns %d", msa_dtype_name(dtype), (int)n,
          (int)n_columns);
}

static void test_unpack_columns(void)
{
    for (int64_t n = 1; n <= 40; n += n < 18 ? 1 : 11) {
        for (int64_t n_columns = 1; n_columns <= 40; n_columns += n_columns < 18 ? 1 : 11) {
            for (msa_dtype dtype = MSA_DTYPE_F32; dtype <= MSA_DTYPE_F16; dtype++) {
                check_unpack(dtype, n, n_columns, (int32_t)(n & 1));
            }
        }
    }
}

/* ---- activation ---------------------------------------------------------------------------- */

static double exact_gated(const msa_activation *a, double g, double u)
{
    if (a->kind == MSA_ACT_SILU) return u * g / (1 + exp(-g));
    double limit = (double)a->limit;
    g = g > limit ? limit : g;
    u = u > limit ? limit : u < -limit ? -limit : u;
    return (u + (double)a->beta) * g / (1 + exp(-(double)a->alpha * g));
}

/* To the last places, over the whole range in which the sigmoid is a normal number. */
static void check_gated(const msa_activation *activation, int64_t n)
{
    float *gate = place(arena_a, (size_t)n * 4, 1), *up = place(arena_b, (size_t)n * 4, 1);
    float *y = place(arena_c, (size_t)n * 4, 1);
    for (int64_t i = 0; i < n; i++) {
        gate[i] = 50 * random_value();
        up[i] = 9 * random_value();
    }
    kernels->gated(y, gate, up, activation, n);
    for (int64_t i = 0; i < n; i++) {
        double expected = exact_gated(activation, (double)gate[i], (double)up[i]);
        double error = fabs((double)y[i] - expected);
        double steps =
            2 + 1.702 * fabs((double)gate[i]); /* exp carries over its input's rounding */
        CHECK(error <= 0x1p-23 * steps * fabs(expected) + 1e-36,
              "kind %d gate %g up %g: %g, must be %g", activation->kind, (double)gate[i],
              (double)up[i], (double)y[i], expected);
    }
    kernels->gated(gate, gate, up, activation, n);
    CHECK(!memcmp(gate, y, (size_t)n * 4), "onto gate, n %d", (int)n);
}

static void test_gated(void)
{
    static const msa_activation oai = {MSA_ACT_SWIGLU_OAI, 1.702f, 1, 7};
    static const msa_activation silu = {MSA_ACT_SILU, 0, 0, 0};
    for (int64_t n = 1; n <= 300; n += n < 70 ? 1 : 23) {
        check_gated(&oai, n);
        check_gated(&silu, n);
    }
}

int main(void)
{
    arena_a = new_arena();
    arena_b = new_arena();
    arena_c = new_arena();
    for (int i = 0; msa__cpu_kernel_tables[i]; i++) {
        kernels = msa__cpu_kernel_tables[i];
        if (!kernels->usable()) {
            printf("skip %s: this machine lacks it\n", kernels->name);
            continue;
        }
        int before = n_failures;
        test_widening_is_exact();
        test_narrowing_rounds_as_the_scalar_code();
        test_conversion_lengths();
        test_packing();
        test_products();
        test_order_does_not_depend_on_the_cut();
        test_gemv_has_the_bits_of_gemm();
        test_mxfp8();
        test_unpack_columns();
        test_gated();
        printf("%s %s\n", n_failures == before ? "ok  " : "FAIL", kernels->name);
    }
    return n_failures != 0;
}
