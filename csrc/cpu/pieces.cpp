#include "pieces.h"

#include <omp.h>

#include <algorithm>

namespace areal_mega {
namespace {

// The work between two turns of a thread.
constexpr int64_t kBytesPerBlock = 1 << 18;

// What is written is not read again before the caches have forgotten it, if it is more than this.
constexpr int64_t kStreamingBytes = 8 << 20;

using Kernel = void (*)(const PieceArguments&, int64_t, int64_t, int64_t, bool, bool);

Kernel kernel_for(Isa isa) {
#define AREAL_MEGA_SELECT(name) \
    if (isa == Isa::name) return name::copy_pieces;
    AREAL_MEGA_FOR_EACH_ISA(AREAL_MEGA_SELECT)
#undef AREAL_MEGA_SELECT
    return nullptr;
}

}  // namespace

void copy_pieces(const PieceArguments& x, bool pack, int threads, Isa isa) {
    const Kernel kernel = kernel_for(isa);
    const bool streaming = x.total >= kStreamingBytes;
    const int64_t blocks = (x.total + kBytesPerBlock - 1) / kBytesPerBlock;
    threads = static_cast<int>(std::clamp<int64_t>(blocks, 1, threads));
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
    for (int64_t block = 0; block < blocks; ++block) {
        const int64_t first = block * kBytesPerBlock, last = std::min(first + kBytesPerBlock, x.total);
        const PieceRow* row = std::upper_bound(x.rows, x.rows + x.count, first,
                                               [](int64_t byte, const PieceRow& other) { return byte < other.before; });
        kernel(x, row - x.rows - 1, first, last, pack, streaming);
    }
}

}  // namespace areal_mega
