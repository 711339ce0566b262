/* Selections made by hand: uniform, and clustered as those of models are. */
#include "bench_data.h"
#include "bench_device.h"

#include <stdlib.h>
#include <string.h>

#define NEIGHBOURS 16 /* tokens over which the union is counted */
#define N_DRIFTING (STAGE_TOPK - 3)
#define N_NEW      3 /* of the drifting ones a token exchanges */

static int by_number(const void *a, const void *b)
{
    return *(const int32_t *)a - *(const int32_t *)b;
}

static int is_in(const int32_t *ids, int32_t n, int32_t id)
{
    for (int32_t i = 0; i < n; i++) {
        if (ids[i] == id) return 1;
    }
    return 0;
}

/* A block in first..end-1 that is not among the n ids. */
static int32_t draw_other(uint64_t *state, int32_t first, int32_t end, const int32_t *ids,
                          int32_t n)
{
    int32_t id;
    do {
        id = first + (int32_t)bench_random(state, end - first);
    } while (is_in(ids, n, id));
    return id;
}

/* One row; `drifting` lives from token to token. */
static void draw_row(uint64_t *state, int32_t local, int32_t is_clustered, int32_t *drifting,
                     int32_t *row)
{
    row[0] = local;
    if (!is_clustered) {
        for (int32_t k = 1; k < STAGE_TOPK; k++) row[k] = draw_other(state, 0, local, row, k);
    } else {
        for (int32_t i = 0; i < N_NEW; i++) {
            drifting[bench_random(state, N_DRIFTING)] =
                draw_other(state, 1, local - 2, drifting, N_DRIFTING);
        }
        row[1] = 0;
        row[2] = local - 1;
        memcpy(row + 3, drifting, N_DRIFTING * sizeof(*row));
    }
    qsort(row, STAGE_TOPK, sizeof(*row), by_number);
}

static double count_union(const int32_t *rows, int64_t n_tokens)
{
    int64_t n_blocks = 0, n_unions = 0;
    int32_t ids[NEIGHBOURS * STAGE_TOPK];
    for (int64_t i = 0; i + NEIGHBOURS <= n_tokens; i += NEIGHBOURS, n_unions++) {
        for (int64_t t = 0; t < NEIGHBOURS; t++) { /* of group 0 */
            memcpy(ids + t * STAGE_TOPK, rows + (i + t) * STAGE_KV_HEADS * STAGE_TOPK,
                   STAGE_TOPK * sizeof(*ids));
        }
        qsort(ids, NEIGHBOURS * STAGE_TOPK, sizeof(*ids), by_number);
        for (int32_t n = 0; n < NEIGHBOURS * STAGE_TOPK; n++) {
            n_blocks += n == 0 || ids[n] != ids[n - 1];
        }
    }
    return n_unions ? (double)n_blocks / (double)n_unions : 0;
}

const char *device_draw_rows(bench_stage *s, const stage_shape *shape, int32_t is_clustered,
                             double *mean_union)
{
    size_t n_ids = (size_t)shape->q_len * STAGE_KV_HEADS * STAGE_TOPK;
    int32_t first_local = (shape->kv_len - shape->q_len) / STAGE_BLOCK;
    int32_t drifting[STAGE_KV_HEADS][N_DRIFTING];
    if (first_local < 4 * STAGE_TOPK) return "the context is too short for a drawn selection";
    int32_t *rows = malloc(n_ids * sizeof(*rows));
    if (!rows) return "out of memory";
    for (int32_t g = 0; g < STAGE_KV_HEADS; g++) {
        for (int32_t i = 0; i < N_DRIFTING; i++) {
            drifting[g][i] = draw_other(&s->random_state, 1, first_local - 2, drifting[g], i);
        }
    }
    for (int64_t i = 0; i < shape->q_len; i++) {
        int32_t local = (int32_t)((shape->kv_len - shape->q_len + i) / STAGE_BLOCK);
        for (int32_t g = 0; g < STAGE_KV_HEADS; g++) {
            draw_row(&s->random_state, local, is_clustered, drifting[g],
                     rows + (i * STAGE_KV_HEADS + g) * STAGE_TOPK);
        }
    }
    *mean_union = count_union(rows, shape->q_len);
    msa_status status = msa_memory_upload(s->ctx, s->blocks, rows, n_ids * sizeof(*rows));
    free(rows);
    return status == MSA_OK ? NULL : msa_last_error();
}
