// What the three programs share on the host: error checks, tensor maps, random inputs, medians.
#ifndef MSA_LAB_HOST_CUH
#define MSA_LAB_HOST_CUH

#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <algorithm>
#include <vector>

#define CHECK(x)                                                                                   \
    do {                                                                                           \
        cudaError_t error_ = (x);                                                                  \
        if (error_ != cudaSuccess) {                                                               \
            printf("%s:%d %s\n", __FILE__, __LINE__, cudaGetErrorString(error_));                  \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

// Rows of 128 bf16, loaded in boxes of 64 columns x box_rows with the 128-byte swizzle.
static CUtensorMap make_row_map(void *base, uint64_t n_rows, uint32_t box_rows)
{
    static decltype(&cuTensorMapEncodeTiled) encode;
    if (!encode) {
        cudaDriverEntryPointQueryResult found;
        CHECK(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", (void **)&encode, 12000,
                                               cudaEnableDefault, &found));
    }
    CUtensorMap map;
    cuuint64_t dims[2] = {128, n_rows}, strides[1] = {256};
    cuuint32_t box[2] = {64, box_rows}, steps[2] = {1, 1};
    if (encode(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, base, dims, strides, box, steps,
               CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
               CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
               CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) != CUDA_SUCCESS) {
        printf("tensor map refused\n");
        exit(1);
    }
    return map;
}

// Roughly normal values of unit variance.
__global__ void fill_kernel(__nv_bfloat16 *x, size_t n, uint64_t seed)
{
    size_t step = (size_t)gridDim.x * blockDim.x;
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n; i += step) {
        uint64_t z = (i + (seed << 40)) * 0x9E3779B97F4A7C15ull;
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
        z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
        z ^= z >> 31;
        float sum = 0;
        for (int j = 0; j < 4; j++) sum += (float)((z >> (16 * j)) & 0xffff) / 65536.f;
        x[i] = __float2bfloat16((sum - 2.f) * 1.732f);
    }
}
static __nv_bfloat16 *random_bf16(size_t n, uint64_t seed)
{
    __nv_bfloat16 *x;
    CHECK(cudaMalloc(&x, n * 2));
    fill_kernel<<<1024, 256>>>(x, n, seed);
    return x;
}
template <typename T> static T *device_array(size_t n)
{
    T *x;
    CHECK(cudaMalloc(&x, n * sizeof(T)));
    CHECK(cudaMemset(x, 0xff, n * sizeof(T)));
    return x;
}
template <typename T> static T *to_device(const std::vector<T> &v)
{
    T *x = device_array<T>(v.size());
    CHECK(cudaMemcpy(x, v.data(), v.size() * sizeof(T), cudaMemcpyHostToDevice));
    return x;
}
template <typename T> static std::vector<T> to_host(const T *x, size_t n)
{
    std::vector<T> v(n);
    CHECK(cudaMemcpy(v.data(), x, n * sizeof(T), cudaMemcpyDeviceToHost));
    return v;
}
static std::vector<int> shuffled(int n)
{
    std::vector<int> v(n);
    for (int i = 0; i < n; i++) v[i] = i;
    uint64_t state = 88172645463325252ull;
    for (int i = n - 1; i > 0; i--) {
        state ^= state << 13, state ^= state >> 7, state ^= state << 17;
        std::swap(v[i], v[state % (i + 1)]);
    }
    return v;
}
static float median(std::vector<float> v)
{
    std::sort(v.begin(), v.end());
    return v[v.size() / 2];
}

// Block scores of one token by plain f32 loops: scores[g * n_blocks + b].
__global__ void naive_scores_kernel(const __nv_bfloat16 *q, const __nv_bfloat16 *k,
                                    const int *page_table, int n_blocks, float *scores)
{
    __shared__ float best[128];
    int b = blockIdx.x, g = blockIdx.y;
    const __nv_bfloat16 *key = k + ((size_t)page_table[b] * 128 + threadIdx.x) * 128;
    const __nv_bfloat16 *query = q + (size_t)g * 128;
    float sum = 0;
    for (int d = 0; d < 128; d++)
        sum = fmaf(__bfloat162float(key[d]), __bfloat162float(query[d]), sum);
    best[threadIdx.x] = sum;
    __syncthreads();
    for (int w = 64; w; w /= 2) {
        if (threadIdx.x < w) best[threadIdx.x] = fmaxf(best[threadIdx.x], best[threadIdx.x + w]);
        __syncthreads();
    }
    if (threadIdx.x == 0) scores[g * n_blocks + b] = best[0];
}
// Rows of one token that differ from a sort of the naive scores (4 groups, K = 16, 1 local block);
// near counts those whose margin at the cut is below 1e-3.
static int wrong_rows(const __nv_bfloat16 *q, const __nv_bfloat16 *k, const int *page_table,
                      int n_blocks, int local, const int *rows, int *near)
{
    float *scores = device_array<float>((size_t)4 * n_blocks);
    naive_scores_kernel<<<dim3(n_blocks, 4), 128>>>(q, k, page_table, n_blocks, scores);
    std::vector<float> all = to_host(scores, (size_t)4 * n_blocks);
    std::vector<int> got = to_host(rows, 64);
    CHECK(cudaFree(scores));
    int wrong = 0;
    for (int g = 0; g < 4; g++) {
        const float *s = &all[(size_t)g * n_blocks];
        std::vector<int> order(local);
        for (int i = 0; i < local; i++) order[i] = i;
        std::sort(order.begin(), order.end(),
                  [&](int x, int y) { return s[x] > s[y] || (s[x] == s[y] && x < y); });
        int n = std::min(15, local);
        float margin = local > 15 ? s[order[14]] - s[order[15]] : 1;
        std::vector<int> want(order.begin(), order.begin() + n);
        std::sort(want.begin(), want.end());
        want.push_back(local);
        want.resize(16, -1);
        if (!std::equal(want.begin(), want.end(), got.begin() + g * 16)) {
            if (margin < 1e-3f) {
                ++*near;
            } else {
                wrong++;
            }
        }
    }
    return wrong;
}

// Attention of one token over its rows by plain f32 loops (64 heads, 4 groups).
__global__ void naive_attend_kernel(const __nv_bfloat16 *q, const __nv_bfloat16 *k,
                                    const __nv_bfloat16 *v, const int *page_table, const int *rows,
                                    int position, float *out)
{
    __shared__ float s[2048];
    int h = blockIdx.x, g = h / 16;
    const int *row = rows + g * 16;
    for (int i = threadIdx.x; i < 2048; i += 128) {
        int b = row[i / 128], key = b * 128 + i % 128;
        float x = -INFINITY;
        if (b >= 0 && key <= position) {
            const __nv_bfloat16 *kk = k + (((size_t)page_table[b] * 4 + g) * 128 + i % 128) * 128;
            x = 0;
            for (int d = 0; d < 128; d++)
                x = fmaf(__bfloat162float(q[(size_t)h * 128 + d]), __bfloat162float(kk[d]), x);
            x *= rsqrtf(128.f);
        }
        s[i] = x;
    }
    __syncthreads();
    float m = -INFINITY, l = 0, o = 0;
    for (int i = 0; i < 2048; i++) m = fmaxf(m, s[i]);
    for (int i = 0; i < 2048; i++) {
        float e = expf(s[i] - m);
        l += e;
        if (e > 0) {
            size_t base = (((size_t)page_table[row[i / 128]] * 4 + g) * 128 + i % 128) * 128;
            o += e * __bfloat162float(v[base + threadIdx.x]);
        }
    }
    out[h * 128 + threadIdx.x] = o / l;
}
// ||out - naive|| / ||naive|| of one token.
static double attend_error(const __nv_bfloat16 *q, const __nv_bfloat16 *k, const __nv_bfloat16 *v,
                           const int *page_table, const int *rows, int position,
                           const __nv_bfloat16 *out)
{
    float *want = device_array<float>(8192);
    naive_attend_kernel<<<64, 128>>>(q, k, v, page_table, rows, position, want);
    std::vector<float> a = to_host(want, 8192);
    std::vector<__nv_bfloat16> b = to_host(out, 8192);
    CHECK(cudaFree(want));
    double error = 0, norm = 0;
    for (int i = 0; i < 8192; i++) {
        double d = (double)__bfloat162float(b[i]) - a[i];
        error += d * d;
        norm += (double)a[i] * a[i];
    }
    return sqrt(error / norm);
}

#endif
