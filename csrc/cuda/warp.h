// What the kernels share: all work is cut for warps, which know nothing of one another.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace areal_mega {

constexpr int kWarp = 32;
constexpr int kWarpsPerBlock = 4;
constexpr int kThreads = kWarp * kWarpsPerBlock;
constexpr unsigned kAllLanes = 0xffffffff;

inline int64_t blocks_for(int64_t warps) { return (warps + kWarpsPerBlock - 1) / kWarpsPerBlock; }

static __device__ __forceinline__ int64_t warp_index() {
    return static_cast<int64_t>(blockIdx.x) * kWarpsPerBlock + threadIdx.x / kWarp;
}

static __device__ __forceinline__ int lane_index() { return threadIdx.x % kWarp; }

// The last i in [0, count) whose key is at most x, for keys that never decrease and begin with such a one. The whole
// warp searches: 32 keys in a round, since a round takes as long as memory does to answer.
template <typename Key>
static __device__ __forceinline__ int64_t last_at_most(int64_t count, int64_t x, Key key) {
    int64_t first = 0, last = count;
    while (last - first > 1) {
        const int64_t step = (last - first + kWarp - 1) / kWarp;
        const int64_t i = first + lane_index() * step;
        const int hits = __popc(__ballot_sync(kAllLanes, i < last && key(i) <= x));
        first += (hits - 1) * step;
        last = first + step < last ? first + step : last;
    }
    return first;
}

}  // namespace areal_mega
