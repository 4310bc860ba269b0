// Sums over tokens on several threads that do not depend on how many there are.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace areal_mega {

constexpr int64_t kTokensPerBlock = 4096;

// Fewer tokens than this are done sooner by one thread than a second one wakes up.
constexpr int64_t kTokensPerThread = 16384;

inline int threads_for(int64_t tokens, int threads) {
    return static_cast<int>(std::clamp<int64_t>(tokens / kTokensPerThread, 1, threads));
}

// sums [count] of the blocks of all tokens, added in their order; block(begin, end, sums) writes those of one block.
template <typename Block>
std::vector<double> sum_over_blocks(int64_t tokens, int count, int threads, const Block& block) {
    const int64_t blocks = (tokens + kTokensPerBlock - 1) / kTokensPerBlock;
    std::vector<double> partial(blocks * count), sums(count);
#pragma omp parallel for num_threads(threads_for(tokens, threads)) schedule(static)
    for (int64_t i = 0; i < blocks; ++i) {
        block(i * kTokensPerBlock, std::min(tokens, (i + 1) * kTokensPerBlock), &partial[i * count]);
    }
    for (int64_t i = 0; i < blocks * count; ++i) sums[i % count] += partial[i];
    return sums;
}

}  // namespace areal_mega
