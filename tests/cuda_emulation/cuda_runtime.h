// As much of CUDA as our kernels use, on one thread of the CPU: the same sources compile with a C++ compiler that finds
// this header first. Blocks run in order; the lanes of a warp take turns, each up to the next place where all of them
// meet, so a value that a lane takes too early is the one from before. A lane that comes to another meeting place than
// its neighbours, or takes from one that is not there, ends the process.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <vector>

#define __host__
#define __device__
#define __global__
#define __forceinline__ inline
#define __shared__ static
#define __launch_bounds__(...)

struct alignas(8) uint2 {
    uint32_t x, y;
};
struct alignas(16) uint4 {
    uint32_t x, y, z, w;
};
struct dim3 {
    unsigned x = 1, y = 1, z = 1;
    dim3() = default;
    explicit dim3(unsigned n) : x(n) {}
};
struct CUstream_st;
using cudaStream_t = CUstream_st*;
using cudaError_t = int;
constexpr cudaError_t cudaSuccess = 0;
inline const char* cudaGetErrorString(cudaError_t) { return "no error"; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
struct cudaLaunchConfig_t {
    dim3 gridDim, blockDim;
    size_t dynamicSmemBytes;
    cudaStream_t stream;
};

inline dim3 blockIdx, threadIdx;

namespace emulation {

constexpr int kLanes = 32;

// Whether the lanes take turns from the last to the first. No result may depend on it.
inline bool backwards = false;

struct Lane {
    std::vector<char> stack = std::vector<char>(1 << 16);
    ucontext_t start;
    jmp_buf here;
    bool started, done;
    const char* meeting;     // where it waits
    unsigned char value[8];  // what it offers there
};

struct Warp {
    std::vector<Lane> lanes = std::vector<Lane>(kLanes);
    jmp_buf scheduler;
    int current;
    const std::function<void()>* kernel;
    unsigned char offered[kLanes][8];
};
inline Warp warp;

[[noreturn]] inline void fail(const char* what) {
    std::fprintf(stderr, "CUDA emulation: %s\n", what);
    std::abort();
}

inline void enter() {
    (*warp.kernel)();
    warp.lanes[warp.current].done = true;
    _longjmp(warp.scheduler, 1);
}

// Runs a lane up to its next meeting place or its end.
inline void resume(int index, unsigned first_thread) {
    Lane& lane = warp.lanes[index];
    warp.current = index;
    threadIdx.x = first_thread + index;
    if (_setjmp(warp.scheduler)) return;
    if (lane.started) _longjmp(lane.here, 1);
    lane.started = true;
    getcontext(&lane.start);
    lane.start.uc_stack.ss_sp = lane.stack.data();
    lane.start.uc_stack.ss_size = lane.stack.size();
    makecontext(&lane.start, enter, 0);
    setcontext(&lane.start);
}

inline void run_warp(unsigned first_thread) {
    for (Lane& lane : warp.lanes) lane.started = lane.done = false;
    for (;;) {
        for (int i = 0; i < kLanes; ++i) resume(backwards ? kLanes - 1 - i : i, first_thread);
        const Lane& any = warp.lanes[0];
        for (const Lane& lane : warp.lanes) {
            if (lane.done != any.done) fail("some lanes of a warp return while others wait for them");
            if (!lane.done && std::strcmp(lane.meeting, any.meeting)) fail("lanes of a warp wait at different places");
        }
        if (any.done) return;
        for (int i = 0; i < kLanes; ++i) std::memcpy(warp.offered[i], warp.lanes[i].value, sizeof any.value);
    }
}

template <typename T>
void meet(const char* where, unsigned mask, const T& value) {
    if (mask != 0xffffffff) fail("only whole warps meet");
    Lane& lane = warp.lanes[warp.current];
    lane.meeting = where;
    static_assert(sizeof value <= sizeof lane.value);
    std::memcpy(lane.value, &value, sizeof value);
    if (!_setjmp(lane.here)) _longjmp(warp.scheduler, 1);
}

template <typename T>
T offered_by(int lane) {
    T value;
    std::memcpy(&value, warp.offered[lane], sizeof value);
    return value;
}

}  // namespace emulation

inline void __syncwarp() { emulation::meet("__syncwarp", 0xffffffff, 0); }

template <typename T>
T __shfl_sync(unsigned mask, T value, int source) {
    emulation::meet("__shfl_sync", mask, value);
    return emulation::offered_by<T>(source % emulation::kLanes);
}

template <typename T>
T __shfl_down_sync(unsigned mask, T value, int lanes) {
    emulation::meet("__shfl_down_sync", mask, value);
    const int own = emulation::warp.current, source = own + lanes;
    return emulation::offered_by<T>(source < emulation::kLanes ? source : own);
}

inline unsigned __ballot_sync(unsigned mask, bool predicate) {
    emulation::meet("__ballot_sync", mask, predicate);
    unsigned ballot = 0;
    for (int i = 0; i < emulation::kLanes; ++i) ballot |= unsigned{emulation::offered_by<bool>(i)} << i;
    return ballot;
}

inline int __popc(unsigned x) { return __builtin_popcount(x); }

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments... arguments) {
    const std::function<void()> call = [=] { kernel(arguments...); };
    emulation::warp.kernel = &call;
    for (blockIdx.x = 0; blockIdx.x < config->gridDim.x; ++blockIdx.x) {
        for (unsigned first = 0; first < config->blockDim.x; first += emulation::kLanes) emulation::run_warp(first);
    }
    return cudaSuccess;
}
