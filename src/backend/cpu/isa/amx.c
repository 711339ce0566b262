/* The bf16 matrix product with AMX tiles; the rest of the table is AVX-512.
 *
 * A tile is 16 rows of 64 bytes: 16 x 32 of A, 16 pairs x 16 columns of a panel of B, or 16 x 16
 * sums. Tiles may not reach outside A or C, so the last rows and the last k are staged through the
 * stack. An element's sum takes 32 k at a time whatever tile it is in.
 */
#include "backend/cpu/isa/attend_kernels.h"
#include "backend/cpu/isa/avx512.h"
#include "backend/cpu/isa/gated.h"
#include "backend/cpu/isa/x86_features.h"

#include <immintrin.h>
#include <string.h>

#define TILE_K     32
#define TILE_BYTES 1024

/* The operand of ldtilecfg: all eight tiles 16 rows of 64 bytes. */
typedef struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} tile_config;

static const tile_config full_tiles = {
    .palette = 1,
    .row_bytes = {64, 64, 64, 64, 64, 64, 64, 64},
    .rows = {16, 16, 16, 16, 16, 16, 16, 16},
};

static void enter(void)
{
    _tile_loadconfig(&full_tiles);
}

static void leave(void)
{
    _tile_release();
}

/* gcc 12's own _tile_loadd does not tell the compiler that it reads memory. */
#define TILE_LOAD(tile, base, stride_bytes)                                                        \
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #tile                                            \
                     :                                                                             \
                     : "r"(base), "r"((int64_t)(stride_bytes))                                     \
                     : "memory")

/* What one strip of C needs: m rows of A by one or two panels of B. */
typedef struct {
    int64_t m, k;
    const uint16_t *a;
    int64_t lda;
    const uint16_t *b;
    int64_t panel_size;
    float *c;
    int64_t ldc;
} strip_args;

/* Padded copies of tiles that would reach past the end. */
typedef struct {
    uint16_t a[TILE_BYTES / 2];
    uint16_t b[2][TILE_BYTES / 2];
} __attribute__((aligned(64))) staging;

typedef struct {
    const uint16_t *data;
    int64_t stride_bytes;
} tile_source;

/* Rows i.. and columns l.. of A. */
static inline tile_source tile_of_a(const strip_args *s, int64_t i, int64_t l, staging *stage)
{
    int64_t rows = s->m - i, columns = s->k - l;
    const uint16_t *src = s->a + i * s->lda + l;
    if (rows >= 16 && columns >= TILE_K) return (tile_source){src, s->lda * 2};
    if (rows > 16) rows = 16;
    if (columns > TILE_K) columns = TILE_K;
    memset(stage->a, 0, TILE_BYTES);
    for (int64_t r = 0; r < rows; r++) {
        memcpy(stage->a + r * TILE_K, (const char *)(src) + r * s->lda * 2, (size_t)columns * 2);
    }
    return (tile_source){stage->a, 64};
}

static inline const uint16_t *tile_of_b(const strip_args *s, int64_t p, int64_t l, staging *stage)
{
    const uint16_t *src = s->b + p * s->panel_size + l * MSA__PANEL;
    int64_t left = s->panel_size - l * MSA__PANEL;
    if (left >= TILE_K * MSA__PANEL) return src;
    memset(stage->b[p], 0, TILE_BYTES);
    memcpy(stage->b[p], src, (size_t)left * 2);
    return stage->b[p];
}

/* Sums of rows i.. and panel p, into a tile or out of it, without touching rows outside C. */
#define LOAD_C(tile, s, i, p)                                                                      \
    do {                                                                                           \
        float *at_ = (s)->c + (i) * (s)->ldc + (p)*MSA__PANEL;                                     \
        if ((s)->m - (i) >= 16) {                                                                  \
            TILE_LOAD(tile, at_, (s)->ldc * 4);                                                    \
        } else {                                                                                   \
            float rows_[TILE_BYTES / 4];                                                           \
            copy_rows(rows_, MSA__PANEL, at_, (s)->ldc, (s)->m - (i));                             \
            TILE_LOAD(tile, rows_, 64);                                                            \
        }                                                                                          \
    } while (0)
#define STORE_C(tile, s, i, p)                                                                     \
    do {                                                                                           \
        float *at_ = (s)->c + (i) * (s)->ldc + (p)*MSA__PANEL;                                     \
        if ((s)->m - (i) >= 16) {                                                                  \
            _tile_stored(tile, at_, (s)->ldc * 4);                                                 \
        } else {                                                                                   \
            float rows_[TILE_BYTES / 4];                                                           \
            _tile_stored(tile, rows_, 64);                                                         \
            copy_rows(at_, (s)->ldc, rows_, MSA__PANEL, (s)->m - (i));                             \
        }                                                                                          \
    } while (0)

static inline void copy_rows(float *dst, int64_t ldd, const float *src, int64_t lds, int64_t rows)
{
    for (int64_t r = 0; r < rows; r++) {
        memcpy(dst + r * ldd, src + r * lds, MSA__PANEL * sizeof(float));
    }
}

/* Up to two tiles of rows (the last may be short) by one or two panels; both counts are constants.
 */
static inline __attribute__((always_inline)) void strip(int row_tiles, int panels,
                                                        const strip_args *s, int32_t accumulate)
{
    staging stage;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    if (accumulate) {
        LOAD_C(0, s, 0, 0);
        if (panels > 1) LOAD_C(1, s, 0, 1);
        if (row_tiles > 1) LOAD_C(2, s, 16, 0);
        if (row_tiles > 1 && panels > 1) LOAD_C(3, s, 16, 1);
    }
    for (int64_t l = 0; l < s->k; l += TILE_K) {
        tile_source a = tile_of_a(s, 0, l, &stage);
        TILE_LOAD(4, a.data, a.stride_bytes);
        TILE_LOAD(6, tile_of_b(s, 0, l, &stage), 64);
        _tile_dpbf16ps(0, 4, 6);
        if (panels > 1) {
            TILE_LOAD(7, tile_of_b(s, 1, l, &stage), 64);
            _tile_dpbf16ps(1, 4, 7);
        }
        if (row_tiles > 1) {
            a = tile_of_a(s, 16, l, &stage);
            TILE_LOAD(5, a.data, a.stride_bytes);
            _tile_dpbf16ps(2, 5, 6);
            if (panels > 1) _tile_dpbf16ps(3, 5, 7);
        }
    }
    STORE_C(0, s, 0, 0);
    if (panels > 1) STORE_C(1, s, 0, 1);
    if (row_tiles > 1) STORE_C(2, s, 16, 0);
    if (row_tiles > 1 && panels > 1) STORE_C(3, s, 16, 1);
}

static void gemm_bf16(int64_t m, int64_t n_panels, int64_t k, const uint16_t *a, int64_t lda,
                      const uint16_t *b, float *c, int64_t ldc, int32_t accumulate)
{
    strip_args s = {.k = k, .lda = lda, .panel_size = MSA__PANEL * (k + (k & 1)), .ldc = ldc};
    for (int64_t p = 0; p < n_panels; p += 2) {
        s.b = b + p * s.panel_size;
        for (int64_t i = 0; i < m; i += 32) {
            s.m = m - i;
            s.a = a + i * lda;
            s.c = c + i * ldc + p * MSA__PANEL;
            if (n_panels - p > 1) {
                if (s.m > 16)
                    strip(2, 2, &s, accumulate);
                else
                    strip(1, 2, &s, accumulate);
            } else {
                if (s.m > 16)
                    strip(2, 1, &s, accumulate);
                else
                    strip(1, 1, &s, accumulate);
            }
        }
    }
}

/* One panel of tiles already runs at the speed of reading A. */
static void gemv_bf16(int64_t m, int64_t n_columns, int64_t k, const uint16_t *a, int64_t lda,
                      const uint16_t *b, float *c, int64_t ldc, int32_t accumulate)
{
    (void)n_columns;
    gemm_bf16(m, 1, k, a, lda, b, c, ldc, accumulate);
}

const msa__cpu_kernels msa__kernels_amx = {
    .name = "amx",
    .usable = msa__amx_usable,
    .enter = enter,
    .leave = leave,
    .gemm_f32 = msa__avx512_gemm_f32,
    .gemm_bf16 = gemm_bf16,
    .pack_columns_f32 = msa__avx512_pack_columns_f32,
    .pack_columns_bf16 = msa__avx512_pack_columns_bf16,
    .pack_rows_f32 = msa__avx512_pack_rows_f32,
    .pack_rows_bf16 = msa__avx512_pack_rows_bf16,
    .to_f32 = msa__avx512_to_f32,
    .to_bf16 = msa__avx512_to_bf16,
    .from_f32 = msa__avx512_from_f32,
    .mxfp8_to_bf16 = msa__avx512_mxfp8_to_bf16,
    .unpack_columns = msa__avx512_unpack_columns,
    .gemv_f32 = msa__avx512_gemv_f32,
    .gemv_bf16 = gemv_bf16,
    .attend = &msa__attend_avx512,
    .gated = gated_activation,
    .gated_backward = gated_gradient,
    .exp_below = exp_below,
};
