/* See token_bits.h. A thread makes a word: its row ascends, so the tokens of 32 keys are
 * neighbours. */
#include "backend/cuda/token_bits.h"

enum { THREADS = 256 };

static __global__ void __launch_bounds__(THREADS)
    bits_kernel(msa_tensor tokens, int64_t first, int64_t n_words, uint32_t *bits)
{
    int64_t word = (int64_t)blockIdx.x * THREADS + threadIdx.x, row = blockIdx.y;
    if (word >= n_words) return;
    const int32_t *listed = (const int32_t *)tokens.data + (first + row) * tokens.stride[0];
    uint32_t key = (uint32_t)word * 32, x = 0;
    int64_t low = 0, high = tokens.shape[1];
    while (low < high) { /* the first entry at or after the key; as unsigned, -1 is the largest */
        int64_t middle = (low + high) / 2;
        if ((uint32_t)listed[middle] < key) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    for (; low < tokens.shape[1] && (uint32_t)listed[low] < key + 32; low++) {
        x |= 1u << (listed[low] - key);
    }
    bits[row * n_words + word] = x;
}

msa_status token_bits_make(msa_context *ctx, const msa_tensor *tokens, int64_t first,
                           int64_t n_rows, int64_t row, uint32_t *bits)
{
    for (int64_t done = 0; done < n_rows; done += 32768) {
        int64_t n = n_rows - done < 32768 ? n_rows - done : 32768;
        dim3 grid((unsigned)((row + THREADS - 1) / THREADS), (unsigned)n);
        bits_kernel<<<grid, THREADS, 0, cuda_stream(ctx)>>>(*tokens, first + done, row,
                                                            bits + done * row);
        MSA_TRY(cuda_launched("token bits"));
    }
    return MSA_OK;
}
