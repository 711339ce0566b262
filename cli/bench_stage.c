/* See bench_stage.h. */
#include "bench_stage.h"

#include "bench_data.h"

#include <stdlib.h>
#include <string.h>

#define NOISE_NUMBERS ((int64_t)1 << 25)
#define PIECE_NUMBERS ((int64_t)1 << 22)
#define LANE_NUMBERS  (STAGE_KV_HEADS * STAGE_BLOCK * STAGE_DIM) /* of K or V in a page */
#define INDEX_NUMBERS (STAGE_BLOCK * STAGE_DIM)

/* ---- memory ---------------------------------------------------------------------------------- */

static msa_status upload_numbers(bench_stage *s, void *to, int64_t n)
{
    enum { AT_ONCE = 1 << 22 };
    uint16_t *numbers = malloc(AT_ONCE * sizeof(*numbers));
    msa_status status = numbers ? MSA_OK : MSA_ENOMEM;
    for (int64_t done = 0; status == MSA_OK && done < n; done += AT_ONCE) {
        int64_t piece = n - done < AT_ONCE ? n - done : AT_ONCE;
        bench_draw_bf16(&s->random_state, numbers, piece);
        status = msa_memory_upload(s->ctx, (uint16_t *)to + done, numbers, (size_t)piece * 2);
    }
    free(numbers);
    return status;
}

/* Pieces of the noise from random places. */
static msa_status copy_noise(bench_stage *s, void *to, int64_t n)
{
    msa_status status = MSA_OK;
    for (int64_t done = 0; status == MSA_OK && done < n; done += PIECE_NUMBERS) {
        int64_t piece = n - done < PIECE_NUMBERS ? n - done : PIECE_NUMBERS;
        int64_t from = bench_random(&s->random_state, (NOISE_NUMBERS - piece) / 128 + 1) * 128;
        status = msa_memory_copy(s->ctx, (uint16_t *)to + done, (const uint16_t *)s->noise + from,
                                 (size_t)piece * 2);
    }
    return status;
}

msa_status stage_draw_queries(bench_stage *s)
{
    int64_t rows = STAGE_CHUNK * STAGE_DIM;
    msa_status status = copy_noise(s, s->q, rows * STAGE_Q_HEADS);
    return status == MSA_OK ? copy_noise(s, s->q_index, rows * STAGE_KV_HEADS) : status;
}

typedef struct {
    void **memory;
    size_t bytes;
} part;

enum { N_PARTS = 14 };

static void list_parts(bench_stage *s, part *parts)
{
    size_t pages = (size_t)s->n_pages, rows = STAGE_CHUNK;
    const part all[N_PARTS] = {
        {&s->k, pages * LANE_NUMBERS * 2},
        {&s->v, pages * LANE_NUMBERS * 2},
        {&s->k_index, pages * INDEX_NUMBERS * 2},
        {&s->keys8, pages * INDEX_NUMBERS},
        {&s->bounds8, pages * 3 * sizeof(float)},
        {&s->noise, (size_t)NOISE_NUMBERS * 2},
        {&s->q, rows * STAGE_Q_HEADS * STAGE_DIM * 2},
        {&s->q_index, rows * STAGE_KV_HEADS * STAGE_DIM * 2},
        {&s->out, rows * STAGE_Q_HEADS * STAGE_DIM * 2},
        {&s->blocks, rows * STAGE_KV_HEADS * STAGE_TOPK * sizeof(int32_t)},
        {&s->lse, rows * STAGE_Q_HEADS * sizeof(float)},
        {(void **)&s->device_table, pages * sizeof(int32_t)},
        {(void **)&s->lens, STAGE_MAX_SEQS * sizeof(int32_t)},
        {(void **)&s->cu_seqlens, (STAGE_MAX_SEQS + 1) * sizeof(int32_t)},
    };
    memcpy(parts, all, sizeof(all));
}

void stage_free(bench_stage *s)
{
    part parts[N_PARTS];
    if (!s->ctx) return;
    list_parts(s, parts);
    for (int i = 0; i < N_PARTS; i++) msa_memory_free(s->ctx, *parts[i].memory, parts[i].bytes);
    msa_memory_free(s->ctx, s->workspace, s->workspace_bytes);
    free(s->table);
}

/* ---- contents -------------------------------------------------------------------------------- */

/* Every layer holds the same index keys in another place: place i of the table is a page with the
 * keys number order[i % n], of layer i / n, or if they are mixed, of one that depends on both.
 * Every page comes once, and no keys come twice within a longest context. */
static const char *place_pages(bench_stage *s, int32_t mixed_pages)
{
    int64_t n = s->n_pages / STAGE_LAYERS;
    int32_t *order = malloc((size_t)n * sizeof(*order));
    s->table = malloc((size_t)s->n_pages * sizeof(*s->table));
    if (!order || !s->table) {
        free(order);
        return "out of memory";
    }
    for (int64_t i = 0; i < n; i++) order[i] = (int32_t)i;
    for (int64_t i = n - 1; i > 0; i--) {
        int64_t j = bench_random(&s->random_state, i + 1);
        int32_t swap = order[i];
        order[i] = order[j];
        order[j] = swap;
    }
    for (int64_t i = 0; i < s->n_pages; i++) {
        uint64_t layer = (uint64_t)(i / n);
        if (mixed_pages) layer += (uint64_t)order[i % n] * 0x9e3779b97f4a7c15u >> 40;
        s->table[i] = (int32_t)((int64_t)(layer % STAGE_LAYERS) * n + order[i % n]);
    }
    free(order);
    return msa_memory_upload(s->ctx, s->device_table, s->table,
                             (size_t)s->n_pages * sizeof(*s->table)) == MSA_OK
               ? NULL
               : msa_last_error();
}

static msa_kv_view view_of(const bench_stage *s, int64_t first_page, int32_t n_seqs,
                           int32_t n_blocks)
{
    msa_kv_view kv;
    memset(&kv, 0, sizeof(kv));
    kv.k = msa_tensor_make(s->k, MSA_DTYPE_BF16, 4, s->n_pages, STAGE_KV_HEADS, STAGE_BLOCK,
                           STAGE_DIM);
    kv.v = kv.k;
    kv.v.data = s->v;
    kv.k_index =
        msa_tensor_make(s->k_index, MSA_DTYPE_BF16, 3, s->n_pages, STAGE_BLOCK, STAGE_DIM, 1);
    kv.page_table = s->device_table + first_page;
    kv.page_table_stride = n_blocks;
    kv.kv_lens = s->lens;
    kv.n_seqs = n_seqs;
    return kv;
}

static msa_index8 index8_of(const bench_stage *s)
{
    return (msa_index8){
        msa_tensor_make(s->keys8, MSA_DTYPE_I8, 3, s->n_pages, STAGE_BLOCK, STAGE_DIM, 1),
        msa_tensor_make(s->bounds8, MSA_DTYPE_F32, 2, s->n_pages, 3, 0, 0)};
}

static msa_status set_lengths(bench_stage *s, int32_t n_seqs, int32_t q_len, int32_t kv_len)
{
    int32_t lens[STAGE_MAX_SEQS], cu[STAGE_MAX_SEQS + 1] = {0};
    for (int32_t i = 0; i < n_seqs; i++) {
        lens[i] = kv_len;
        cu[i + 1] = cu[i] + q_len;
    }
    msa_status status = msa_memory_upload(s->ctx, s->lens, lens, (size_t)n_seqs * sizeof(*lens));
    if (status != MSA_OK) return status;
    return msa_memory_upload(s->ctx, s->cu_seqlens, cu, (size_t)(n_seqs + 1) * sizeof(*cu));
}

static msa_status quantize(bench_stage *s, const msa_kv_view *kv, int64_t n_tokens)
{
    msa_index_quantize_args args;
    msa_index_quantize_args_init(&args);
    args.kv = *kv;
    args.kv.k = args.kv.v = (msa_tensor){0};
    args.cu_seqlens_q = s->cu_seqlens;
    args.n_tokens = n_tokens;
    args.index8 = index8_of(s);
    return msa_index_quantize(s->ctx, &args);
}

static msa_status quantize_pool(bench_stage *s)
{
    int32_t n_blocks = (int32_t)(s->n_pages / STAGE_LAYERS), n = n_blocks * STAGE_BLOCK;
    msa_kv_view kv = view_of(s, 0, STAGE_LAYERS, n_blocks);
    msa_status status = set_lengths(s, STAGE_LAYERS, n, n);
    if (status == MSA_OK) status = quantize(s, &kv, (int64_t)n * STAGE_LAYERS);
    return status == MSA_OK ? msa_context_synchronize(s->ctx) : status;
}

static msa_status fill_pool(bench_stage *s)
{
    int64_t layer = s->n_pages / STAGE_LAYERS * INDEX_NUMBERS;
    msa_status status = upload_numbers(s, s->noise, NOISE_NUMBERS);
    if (status == MSA_OK) status = upload_numbers(s, s->k_index, layer);
    for (int32_t g = 1; status == MSA_OK && g < STAGE_LAYERS; g++) {
        status = msa_memory_copy(s->ctx, (uint16_t *)s->k_index + g * layer, s->k_index,
                                 (size_t)layer * 2);
    }
    if (status == MSA_OK) status = copy_noise(s, s->k, s->n_pages * LANE_NUMBERS);
    if (status == MSA_OK) status = copy_noise(s, s->v, s->n_pages * LANE_NUMBERS);
    return status == MSA_OK ? stage_draw_queries(s) : status;
}

const char *stage_init(bench_stage *s, msa_context *ctx, int64_t max_context, uint64_t seed,
                       int32_t mixed_pages)
{
    part parts[N_PARTS];
    memset(s, 0, sizeof(*s));
    s->ctx = ctx;
    s->max_context = max_context;
    s->n_pages = max_context / STAGE_BLOCK * STAGE_LAYERS;
    s->random_state = seed;
    list_parts(s, parts);
    for (int i = 0; i < N_PARTS; i++) {
        if (msa_memory_alloc(ctx, parts[i].bytes, parts[i].memory) != MSA_OK) {
            return msa_last_error();
        }
    }
    const char *problem = place_pages(s, mixed_pages);
    if (problem) return problem;
    if (fill_pool(s) != MSA_OK) return msa_last_error();
    if (quantize_pool(s) != MSA_OK) s->no_index8 = "msa_index_quantize failed";
    return msa_context_synchronize(ctx) == MSA_OK ? NULL : msa_last_error();
}

/* ---- arguments ------------------------------------------------------------------------------- */

int32_t stage_blocks(const stage_shape *shape)
{
    return (shape->kv_len + STAGE_BLOCK - 1) / STAGE_BLOCK;
}

int32_t stage_rotations(const bench_stage *s, const stage_shape *shape)
{
    return (int32_t)(s->n_pages / ((int64_t)shape->n_seqs * stage_blocks(shape)));
}

int64_t stage_first_row(const stage_shape *shape, int32_t r)
{
    int64_t n = (int64_t)shape->n_seqs * shape->q_len;
    return r % (STAGE_CHUNK / n) * n;
}

static int64_t first_page(const stage_shape *shape, int32_t r)
{
    return (int64_t)r * shape->n_seqs * stage_blocks(shape);
}

const int32_t *stage_pages(const bench_stage *s, const stage_shape *shape, int32_t r)
{
    return s->table + first_page(shape, r);
}

/* Rows of a [STAGE_CHUNK, heads, last] array that belong to batch r. */
static msa_tensor rows_of(void *data, msa_dtype dtype, const stage_shape *shape, int32_t r,
                          int64_t heads, int64_t last)
{
    size_t row_bytes = (size_t)(heads * last) * msa_dtype_bytes(dtype);
    char *first = (char *)data + (size_t)stage_first_row(shape, r) * row_bytes;
    return msa_tensor_make(first, dtype, 3, (int64_t)shape->n_seqs * shape->q_len, heads, last, 1);
}

msa_select_args stage_select_args(const bench_stage *s, const stage_shape *shape, int32_t r,
                                  int32_t use_index8)
{
    msa_select_args args;
    msa_select_args_init(&args);
    args.q_index = rows_of(s->q_index, MSA_DTYPE_BF16, shape, r, STAGE_KV_HEADS, STAGE_DIM);
    args.kv = view_of(s, first_page(shape, r), shape->n_seqs, stage_blocks(shape));
    args.kv.k = args.kv.v = (msa_tensor){0};
    args.cu_seqlens_q = s->cu_seqlens;
    args.blocks = rows_of(s->blocks, MSA_DTYPE_I32, shape, r, STAGE_KV_HEADS, STAGE_TOPK);
    if (use_index8) args.index8 = index8_of(s);
    args.settled = 1; /* nothing is appended while it is timed */
    return args;
}

msa_attend_args stage_attend_args(const bench_stage *s, const stage_shape *shape, int32_t r)
{
    msa_attend_args args;
    msa_attend_args_init(&args);
    args.q = rows_of(s->q, MSA_DTYPE_BF16, shape, r, STAGE_Q_HEADS, STAGE_DIM);
    args.kv = view_of(s, first_page(shape, r), shape->n_seqs, stage_blocks(shape));
    args.kv.k_index = (msa_tensor){0};
    args.cu_seqlens_q = s->cu_seqlens;
    args.blocks = rows_of(s->blocks, MSA_DTYPE_I32, shape, r, STAGE_KV_HEADS, STAGE_TOPK);
    args.out = rows_of(s->out, MSA_DTYPE_BF16, shape, r, STAGE_Q_HEADS, STAGE_DIM);
    return args;
}

msa_dense_attend_args stage_dense_args(const bench_stage *s, const stage_shape *shape, int32_t r)
{
    msa_attend_args sparse = stage_attend_args(s, shape, r);
    msa_dense_attend_args args;
    msa_dense_attend_args_init(&args);
    args.q = sparse.q;
    args.kv = sparse.kv;
    args.cu_seqlens_q = sparse.cu_seqlens_q;
    args.out = sparse.out;
    return args;
}

/* ---- running --------------------------------------------------------------------------------- */

static const char *grow_workspace(bench_stage *s, size_t bytes)
{
    if (bytes <= s->workspace_bytes) return NULL;
    msa_memory_free(s->ctx, s->workspace, s->workspace_bytes);
    s->workspace = NULL;
    s->workspace_bytes = 0;
    if (msa_memory_alloc(s->ctx, bytes, &s->workspace) != MSA_OK) return msa_last_error();
    s->workspace_bytes = bytes;
    return NULL;
}

const char *stage_set(bench_stage *s, const stage_shape *shape)
{
    msa_select_args select = stage_select_args(s, shape, 0, 0);
    msa_select_args select8 = stage_select_args(s, shape, 0, 1);
    msa_attend_args attend = stage_attend_args(s, shape, 0);
    msa_dense_attend_args dense = stage_dense_args(s, shape, 0);
    msa_plan plans[4];
    size_t bytes = 0;
    for (int i = 0; i < 4; i++) msa_plan_init(&plans[i]);
    if (msa_select_plan(s->ctx, &select, &plans[0]) != MSA_OK ||
        msa_attend_plan(s->ctx, &attend, &plans[1]) != MSA_OK ||
        msa_dense_attend_plan(s->ctx, &dense, &plans[2]) != MSA_OK ||
        (!s->no_index8 && msa_select_plan(s->ctx, &select8, &plans[3]) != MSA_OK)) {
        return msa_last_error();
    }
    for (int i = 0; i < 4; i++) {
        if (plans[i].workspace_bytes > bytes) bytes = plans[i].workspace_bytes;
    }
    const char *problem = grow_workspace(s, bytes);
    if (problem) return problem;
    if (set_lengths(s, shape->n_seqs, shape->q_len, shape->kv_len) != MSA_OK) {
        return msa_last_error();
    }
    return NULL;
}

static msa_status run_select(bench_stage *s, const stage_shape *shape, int32_t r,
                             int32_t use_index8)
{
    msa_select_args args = stage_select_args(s, shape, r, use_index8);
    msa_plan plan;
    msa_plan_init(&plan);
    msa_status status = msa_select_plan(s->ctx, &args, &plan);
    return status == MSA_OK ? msa_select(s->ctx, &plan, &args, s->workspace, s->workspace_bytes)
                            : status;
}

static msa_status run_attend(bench_stage *s, const stage_shape *shape, int32_t r)
{
    msa_attend_args args = stage_attend_args(s, shape, r);
    msa_plan plan;
    msa_plan_init(&plan);
    msa_status status = msa_attend_plan(s->ctx, &args, &plan);
    return status == MSA_OK ? msa_attend(s->ctx, &plan, &args, s->workspace, s->workspace_bytes)
                            : status;
}

static msa_status run_both(bench_stage *s, const stage_shape *shape, int32_t r, int32_t use_index8)
{
    msa_select_args select = stage_select_args(s, shape, r, use_index8);
    msa_attend_args attend = stage_attend_args(s, shape, r);
    msa_select_attend_args args;
    msa_plan plan;
    msa_select_attend_args_init(&args);
    args.select = &select;
    args.attend = &attend;
    msa_plan_init(&plan);
    msa_status status = msa_select_attend_plan(s->ctx, &args, &plan);
    return status == MSA_OK
               ? msa_select_attend(s->ctx, &plan, &args, s->workspace, s->workspace_bytes)
               : status;
}

static msa_status run_dense(bench_stage *s, const stage_shape *shape, int32_t r)
{
    msa_dense_attend_args args = stage_dense_args(s, shape, r);
    msa_plan plan;
    msa_plan_init(&plan);
    msa_status status = msa_dense_attend_plan(s->ctx, &args, &plan);
    return status == MSA_OK
               ? msa_dense_attend(s->ctx, &plan, &args, s->workspace, s->workspace_bytes)
               : status;
}

msa_status stage_run(bench_stage *s, const stage_shape *shape, int32_t r, int32_t what)
{
    msa_status status = MSA_OK;
    if ((what & RUN_MSA) == RUN_MSA) status = run_both(s, shape, r, what & RUN_INDEX8);
    if ((what & RUN_MSA) == RUN_SELECT) status = run_select(s, shape, r, what & RUN_INDEX8);
    if ((what & RUN_MSA) == RUN_ATTEND) status = run_attend(s, shape, r);
    if (status == MSA_OK && what & RUN_DENSE) status = run_dense(s, shape, r);
    return status;
}

/* New rows come from the pages of another layer, seen as rows. */
static msa_status append_chunk(bench_stage *s, const stage_shape *shape)
{
    int64_t from = s->n_pages / 2 * STAGE_BLOCK + shape->kv_len - shape->q_len;
    msa_kv_append_args args;
    msa_kv_append_args_init(&args);
    args.kv = view_of(s, 0, 1, stage_blocks(shape));
    args.cu_seqlens_q = s->cu_seqlens;
    args.k = msa_tensor_make((uint16_t *)s->k + from * STAGE_KV_HEADS * STAGE_DIM, MSA_DTYPE_BF16,
                             3, shape->q_len, STAGE_KV_HEADS, STAGE_DIM, 1);
    args.v = args.k;
    args.v.data = (uint16_t *)s->v + from * STAGE_KV_HEADS * STAGE_DIM;
    args.k_index = msa_tensor_make((uint16_t *)s->k_index + from * STAGE_DIM, MSA_DTYPE_BF16, 2,
                                   shape->q_len, STAGE_DIM, 1, 1);
    return msa_kv_append(s->ctx, &args);
}

msa_status stage_run_prompt(bench_stage *s, int32_t n_tokens, int32_t what)
{
    msa_status status = MSA_OK;
    for (int32_t done = 0; status == MSA_OK && done < n_tokens; done += STAGE_CHUNK) {
        stage_shape shape = {1, STAGE_CHUNK, done + STAGE_CHUNK};
        msa_kv_view kv = view_of(s, 0, 1, stage_blocks(&shape));
        status = set_lengths(s, 1, shape.q_len, shape.kv_len);
        if (status == MSA_OK) status = append_chunk(s, &shape);
        if (status == MSA_OK && what & RUN_INDEX8) status = quantize(s, &kv, shape.q_len);
        if (status == MSA_OK) status = stage_run(s, &shape, 0, what);
    }
    return status;
}
