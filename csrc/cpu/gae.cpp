#include "gae.h"

#include <omp.h>

#include <algorithm>
#include <vector>

namespace areal_mega {
namespace {

// Fewer tokens than this are done sooner by one thread than a second one wakes up.
constexpr int64_t kTokensPerThread = 16384;

// Longer sequences are cut into stretches of this many tokens, counted from the sequence's end: no result depends on
// the neighbours of a sequence, nor on the number of threads.
constexpr int64_t kTokensPerBlock = 8192;

// The work between two turns of a thread: whole sequences, or a stretch of a long one.
template <typename T, int kLambdas>
struct Block {
    int64_t first, last;  // sequences
    int64_t begin, end;   // tokens
    bool is_stretch;
    GaeElement<T, kLambdas> after;  // of a stretch: all that stands to its right in the sequence, with its end
};

// The blocks of all sequences; the stretches of a long sequence from right to left.
template <typename T, int kLambdas>
std::vector<Block<T, kLambdas>> cut(const GaeArguments<T>& x) {
    std::vector<Block<T, kLambdas>> blocks;
    const int32_t* bounds = x.cu_seqlens;
    for (int64_t first = 0; first < x.sequences;) {
        const int64_t begin = bounds[first];
        const int64_t last =
            std::upper_bound(bounds + first, bounds + x.sequences + 1, begin + kTokensPerBlock) - bounds - 1;
        if (last > first) {
            blocks.push_back({first, last, begin, bounds[last], false, {}});
            first = last;
            continue;
        }
        for (int64_t end = bounds[first + 1]; end > begin; end -= kTokensPerBlock) {
            blocks.push_back({first, first + 1, std::max(begin, end - kTokensPerBlock), end, true, {}});
        }
        ++first;
    }
    return blocks;
}

// Tells each stretch what stands to its right: summaries first, all at once, then one step for each.
template <typename T, int kLambdas>
void carry_over(const GaeArguments<T>& x, const GaeKernels<T, kLambdas>& kernels,
                std::vector<Block<T, kLambdas>>& blocks, int threads) {
    const int64_t count = blocks.size();
    const auto continues = [&](int64_t i) {
        return blocks[i].is_stretch && blocks[i].begin > x.cu_seqlens[blocks[i].first];
    };
    std::vector<GaeElement<T, kLambdas>> summaries(count);
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
    for (int64_t i = 0; i < count; ++i) {
        const auto& block = blocks[i];
        if (continues(i)) summaries[i] = kernels.summary(x, block.first, block.begin, block.end);
    }
    for (int64_t i = 0; i < count; ++i) {
        auto& block = blocks[i];
        if (!block.is_stretch) continue;
        if (block.end == x.cu_seqlens[block.last]) {
            block.after = gae_end<T, kLambdas>(x.bootstrap ? x.bootstrap[block.first] : 0);
        }
        if (continues(i)) blocks[i + 1].after = gae_compose(summaries[i], block.after);
    }
}

template <typename T, int kLambdas>
GaeKernels<T, kLambdas> kernels_for(Isa isa) {
#define AREAL_MEGA_SELECT(name) \
    if (isa == Isa::name) return name::gae_kernels<T, kLambdas>();
    AREAL_MEGA_FOR_EACH_ISA(AREAL_MEGA_SELECT)
#undef AREAL_MEGA_SELECT
    return {};
}

template <typename T, int kLambdas>
void run(const GaeArguments<T>& x, int threads, Isa isa) {
    const GaeKernels<T, kLambdas> kernels = kernels_for<T, kLambdas>(isa);
    auto blocks = cut<T, kLambdas>(x);
    const int64_t count = blocks.size();
    threads = static_cast<int>(std::clamp<int64_t>(x.cu_seqlens[x.sequences] / kTokensPerThread, 1, threads));
    if (std::any_of(blocks.begin(), blocks.end(), [](const auto& block) { return block.is_stretch; })) {
        carry_over(x, kernels, blocks, threads);
    }
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
    for (int64_t i = 0; i < count; ++i) {
        const auto& block = blocks[i];
        if (block.is_stretch) {
            kernels.stretch(x, block.first, block.begin, block.end, block.after);
        } else {
            kernels.sequences(x, block.first, block.last);
        }
    }
}

}  // namespace

template <typename T>
void gae(const GaeArguments<T>& arguments, int threads, Isa isa) {
    if (arguments.decoupled) {
        run<T, 2>(arguments, threads, isa);
    } else {
        run<T, 1>(arguments, threads, isa);
    }
}

template void gae(const GaeArguments<float>&, int, Isa);
template void gae(const GaeArguments<double>&, int, Isa);

}  // namespace areal_mega
