/* A stage of a ring of tiles, with the parity of its round. */
#ifndef MSA_CUDA_RING_PLACE_CUH
#define MSA_CUDA_RING_PLACE_CUH

struct RingPlace {
    int stage, round;
    __device__ __forceinline__ void advance(int stages)
    {
        if (++stage == stages) stage = 0, round ^= 1;
    }
};

#endif
