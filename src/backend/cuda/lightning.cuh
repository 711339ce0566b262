/* Where a segment of a mix lies, for the kernels of its steps. */
#ifndef MSA_CUDA_LIGHTNING_CUH
#define MSA_CUDA_LIGHTNING_CUH

#include "backend/cuda/lightning.h"

typedef struct lightning_segment {
    int seq;              /* -1: there is no such segment */
    int number, n_of_seq; /* of the sequence's segments */
    int n_rows;
    int64_t first, step; /* token of row r: first + r step */
} lightning_segment;

__device__ __forceinline__ int segments_of(const lightning_mix &mix, int seq)
{
    int n = (mix.cu_seqlens[seq + 1] - mix.cu_seqlens[seq] + SEGMENT - 1) / SEGMENT;
    return n > 0 ? n : 1; /* a sequence without tokens hands its state on */
}

/* Segment id of the batch: those of sequence s begin at cu_seqlens[s] / SEGMENT + s; some ids
 * belong to nobody. */
__device__ __forceinline__ lightning_segment segment_at(const lightning_mix &mix, int id)
{
    int low = 0, high = mix.n_seqs - 1;
    while (low < high) {
        int middle = low + (high - low + 1) / 2;
        if (mix.cu_seqlens[middle] / SEGMENT + middle <= id) {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    lightning_segment s = {low, id - (mix.cu_seqlens[low] / SEGMENT + low), segments_of(mix, low)};
    if (s.number >= s.n_of_seq) s.seq = -1;
    int begin = mix.cu_seqlens[low], end = mix.cu_seqlens[low + 1], row = s.number * SEGMENT;
    s.n_rows = min(SEGMENT, end - begin - row);
    s.first = mix.reverse ? end - 1 - row : begin + row;
    s.step = mix.reverse ? -1 : 1;
    return s;
}

/* The state of a head before segment `number` > 0 of a sequence. */
__device__ __forceinline__ float *boundary_at(const lightning_mix &mix, int seq, int number,
                                              int head)
{
    int64_t at = mix.cu_seqlens[seq] / SEGMENT + number;
    return mix.boundaries + (at * mix.n_heads + head) * mix.dim * mix.dim;
}

/* A state of a head where it lies: rows of y by columns of z. data NULL: zeros. */
typedef struct lightning_state {
    float *data;
    int64_t stride;
} lightning_state;

__device__ __forceinline__ lightning_state slot_at(const lightning_mix &mix, const int32_t *slots,
                                                   int seq, int head)
{
    lightning_state none = {NULL, 0};
    if (!slots || slots[seq] < 0) return none;
    return {mix.states + slots[seq] * mix.state_stride[0] + head * mix.state_stride[1],
            mix.state_stride[2]};
}

__device__ __forceinline__ lightning_state state_before(const lightning_mix &mix,
                                                        const lightning_segment &s, int head)
{
    if (s.number > 0) return {boundary_at(mix, s.seq, s.number, head), mix.dim};
    return slot_at(mix, mix.state_in, s.seq, head);
}

/* Where step 1 leaves a segment's sum, and step 3 the last state of a sequence: that of a long one
 * where its last segment has read its own, as its first may still read the slot. */
__device__ __forceinline__ lightning_state state_after(const lightning_mix &mix,
                                                       const lightning_segment &s, int head,
                                                       int outputs)
{
    lightning_state none = {NULL, 0};
    if (!outputs) return {boundary_at(mix, s.seq, s.number + 1, head), mix.dim};
    if (s.number + 1 < s.n_of_seq) return none;
    if (s.number > 0) return {boundary_at(mix, s.seq, s.number, head), mix.dim};
    return slot_at(mix, mix.state_out, s.seq, head);
}

/* Element of the result, through the slope of SiLU where the mix asks for it. */
__device__ __forceinline__ void put_result(const lightning_mix &mix, int64_t token, int head,
                                           int column, float value)
{
    const cuda_view &at = mix.slope_at;
    if (at.data) {
        float x =
            load_element(at.data, at.dtype, token * at.stride[0] + head * at.stride[1] + column);
        float sigmoid = 1 / (1 + expf(-x));
        value *= sigmoid * (1 + x * (1 - sigmoid));
    }
    store_element(mix.out.data, mix.out.dtype,
                  token * mix.out.stride[0] + head * mix.out.stride[1] + column, value);
}

#endif
