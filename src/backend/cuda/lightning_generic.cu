/* Steps of a mix in f32 without tensor cores; see lightning.h.
 *
 * A CTA owns a segment of a head and 32 columns of z, and walks over the segment 16 rows at a time.
 * The state's columns stay in shared memory.
 */
#include "backend/cuda/lightning.cuh"

enum { THREADS = 128, ROWS = 16, COLUMNS = 32, LANES = THREADS / COLUMNS };

typedef struct generic_tiles {
    float *x, *y;  /* [ROWS, D] */
    float *z;      /* [ROWS, COLUMNS] */
    float *p;      /* [ROWS, ROWS] */
    float *state;  /* [D, COLUMNS] */
    float *decays; /* [ROWS + 1] */
} generic_tiles;

static size_t shared_bytes(int dim)
{
    return (size_t)(2 * ROWS * dim + ROWS * COLUMNS + ROWS * ROWS + dim * COLUMNS + ROWS + 1) *
           sizeof(float);
}

static __device__ generic_tiles place_tiles(float *shared, int dim)
{
    generic_tiles t;
    t.x = shared;
    t.y = t.x + ROWS * dim;
    t.z = t.y + ROWS * dim;
    t.p = t.z + ROWS * COLUMNS;
    t.state = t.p + ROWS * ROWS;
    t.decays = t.state + dim * COLUMNS;
    return t;
}

/* Columns first..first+n-1 of rows row..row+n_rows-1; zeros past the rows and the head. */
static __device__ void load_rows(const lightning_operand &from, const lightning_mix &mix,
                                 const lightning_segment &s, int row, int n_rows, int first, int n,
                                 float *to)
{
    const cuda_view &view = from.view;
    for (int i = threadIdx.x; i < ROWS * n; i += THREADS) {
        int r = i / n, column = first + i % n;
        float x = 0;
        if (r < n_rows && column < mix.dim) {
            int64_t token = s.first + (row + r) * s.step;
            x = load_element(view.data, view.dtype,
                             token * view.stride[0] + (int)blockIdx.y * view.stride[1] + column);
            if (from.silu) x = x / (1 + expf(-x));
        }
        to[i] = x;
    }
}

/* out of the chunk: what the state gives, then its own rows. */
static __device__ void write_rows(const lightning_mix &mix, const lightning_segment &s,
                                  const generic_tiles &t, int row, int n_rows)
{
    int c = threadIdx.x % COLUMNS, column = (int)blockIdx.z * COLUMNS + c, dim = mix.dim;
    for (int r = threadIdx.x / COLUMNS; r < n_rows && column < dim; r += LANES) {
        float of_state = 0, of_rows = 0;
        for (int a = 0; a < dim; a++) {
            of_state = fmaf(t.x[r * dim + a], t.state[a * COLUMNS + c], of_state);
        }
        for (int j = 0; j <= r; j++) {
            of_rows = fmaf(t.p[r * ROWS + j], t.z[j * COLUMNS + c], of_rows);
        }
        put_result(mix, s.first + (row + r) * s.step, blockIdx.y, column,
                   of_state * t.decays[r + 1] + of_rows);
    }
}

static __device__ void advance(const lightning_mix &mix, const generic_tiles &t, int n_rows)
{
    int c = threadIdx.x % COLUMNS, dim = mix.dim;
    for (int a = threadIdx.x / COLUMNS; a < dim; a += LANES) {
        float sum = t.decays[n_rows] * t.state[a * COLUMNS + c];
        for (int j = 0; j < n_rows; j++) {
            sum = fmaf(t.decays[n_rows - 1 - j] * t.y[j * dim + a], t.z[j * COLUMNS + c], sum);
        }
        t.state[a * COLUMNS + c] = sum;
    }
}

static __global__ void __launch_bounds__(THREADS)
    generic_kernel(const __grid_constant__ lightning_mix mix, int outputs)
{
    extern __shared__ float shared[];
    lightning_segment s = segment_at(mix, blockIdx.x);
    int head = blockIdx.y, first_column = (int)blockIdx.z * COLUMNS, dim = mix.dim;
    if (s.seq < 0 || (!outputs && s.number + 1 == s.n_of_seq)) return;
    generic_tiles t = place_tiles(shared, dim);
    lightning_state before = {NULL, 0}, after = state_after(mix, s, head, outputs);
    if (outputs) before = state_before(mix, s, head);
    if (threadIdx.x <= ROWS) t.decays[threadIdx.x] = expf(-mix.slopes[head] * threadIdx.x);
    for (int i = threadIdx.x; i < dim * COLUMNS; i += THREADS) {
        int column = first_column + i % COLUMNS;
        int is_there = before.data && column < dim;
        t.state[i] = is_there ? before.data[i / COLUMNS * before.stride + column] : 0;
    }
    for (int row = 0; row < s.n_rows; row += ROWS) {
        int n_rows = min(ROWS, s.n_rows - row);
        load_rows(mix.x, mix, s, row, n_rows, 0, dim, t.x);
        load_rows(mix.y, mix, s, row, n_rows, 0, dim, t.y);
        load_rows(mix.z, mix, s, row, n_rows, first_column, COLUMNS, t.z);
        __syncthreads();
        for (int i = threadIdx.x; outputs && i < ROWS * ROWS; i += THREADS) {
            int r = i / ROWS, j = i % ROWS;
            float sum = 0;
            for (int a = 0; j <= r && a < dim; a++) {
                sum = fmaf(t.x[r * dim + a], t.y[j * dim + a], sum);
            }
            t.p[i] = j <= r ? sum * t.decays[r - j] : 0;
        }
        __syncthreads();
        if (outputs) write_rows(mix, s, t, row, n_rows);
        __syncthreads();
        advance(mix, t, n_rows);
        __syncthreads();
    }
    for (int i = threadIdx.x; after.data && i < dim * COLUMNS; i += THREADS) {
        int column = first_column + i % COLUMNS;
        if (column < dim) after.data[i / COLUMNS * after.stride + column] = t.state[i];
    }
}

msa_status lightning_generic(msa_context *ctx, const lightning_mix *mix, int outputs)
{
    size_t bytes = shared_bytes(mix->dim);
    MSA_CUDA_TRY("lightning",
                 cudaFuncSetAttribute(generic_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      (int)bytes));
    dim3 grid((unsigned)(mix->n_tokens / SEGMENT + mix->n_seqs), (unsigned)mix->n_heads,
              (unsigned)((mix->dim + COLUMNS - 1) / COLUMNS));
    generic_kernel<<<grid, THREADS, bytes, cuda_stream(ctx)>>>(*mix, outputs);
    return cuda_launched("lightning");
}
