// Pieces of tensors to and from one buffer, on a GPU: all rows in one launch. A warp has so many bytes of the rows, cut
// anywhere, and moves them in units of the largest power of two that every address it touches is a multiple of.
#include <algorithm>

#include "launch.h"
#include "pieces.h"
#include "warp.h"

namespace areal_mega {
namespace {

// A warp's share. Many warps are needed to keep the memory busy, and a large share pays for looking its row up.
constexpr int64_t kMinBytesPerWarp = 512;
constexpr int64_t kMaxBytesPerWarp = 8192;
constexpr int64_t kManyWarps = 8192;

// From here on a run is copied by itself: a few bytes at its ends buy wide units for the rest.
constexpr int64_t kLongRun = 1024;

constexpr int kLargestUnit = 16;

// Loads under way before the first store of a lane.
constexpr int kInFlight = 4;

// Two places that hold the same bytes.
struct Pair {
    uint8_t* in_tensor;
    uint8_t* in_buffer;
};

// The largest power of two, up to kLargestUnit, that divides all numbers whose bits are set in `bits`.
__device__ int unit_of(uint64_t bits) {
    bits |= kLargestUnit;
    return static_cast<int>(bits & (~bits + 1));
}

// So many units; place(i, bytes) is where unit i of so many bytes stands.
template <bool pack, typename Unit, typename Place>
__device__ void copy_units(int count, Place place) {
    constexpr int kBytes = sizeof(Unit);
    const auto from = [&](int i) {
        const Pair pair = place(i, kBytes);
        return reinterpret_cast<const Unit*>(pack ? pair.in_tensor : pair.in_buffer);
    };
    const auto to = [&](int i) {
        const Pair pair = place(i, kBytes);
        return reinterpret_cast<Unit*>(pack ? pair.in_buffer : pair.in_tensor);
    };
    int i = lane_index();
#pragma unroll 1
    for (; i + (kInFlight - 1) * kWarp < count; i += kInFlight * kWarp) {
        Unit units[kInFlight];
#pragma unroll
        for (int j = 0; j < kInFlight; ++j) units[j] = *from(i + j * kWarp);
#pragma unroll
        for (int j = 0; j < kInFlight; ++j) *to(i + j * kWarp) = units[j];
    }
#pragma unroll 1
    for (; i < count; i += kWarp) *to(i) = *from(i);
}

// The same with units of so many bytes.
template <bool pack, typename Place>
__device__ void copy_units_of(int bytes, int count, Place place) {
    if (bytes == 16) return copy_units<pack, uint4>(count, place);
    if (bytes == 8) return copy_units<pack, uint2>(count, place);
    if (bytes == 4) return copy_units<pack, uint32_t>(count, place);
    if (bytes == 2) return copy_units<pack, uint16_t>(count, place);
    copy_units<pack, uint8_t>(count, place);
}

// At most as many bytes as there are lanes.
template <bool pack>
__device__ void copy_few(Pair begin, int bytes) {
    const int i = lane_index();
    if (i >= bytes) return;
    if constexpr (pack) {
        begin.in_buffer[i] = begin.in_tensor[i];
    } else {
        begin.in_tensor[i] = begin.in_buffer[i];
    }
}

// Bytes that are contiguous on both sides.
template <bool pack>
__device__ void copy_contiguous(Pair begin, int bytes) {
    const auto tensor = reinterpret_cast<uintptr_t>(begin.in_tensor);
    const auto buffer = reinterpret_cast<uintptr_t>(begin.in_buffer);
    const int unit = unit_of(tensor ^ buffer);  // the bits below it are the same in both
    const int to_boundary = static_cast<int>((~buffer + 1) & (unit - 1));
    const int head = to_boundary < bytes ? to_boundary : bytes;
    const int units = (bytes - head) / unit;
    const auto at = [&](int i) { return Pair{begin.in_tensor + i, begin.in_buffer + i}; };
    copy_units_of<pack>(unit, units, [=](int i, int size) { return at(head + i * size); });
    const int done = head + units * unit;
    copy_few<pack>(begin, head);
    copy_few<pack>(at(done), bytes - done);
}

// Adds to one digit of a number whose digit here goes up to `limit`, exclusive, and returns what the next digit gets.
// In 32 bits where it can be: a GPU divides 64 bits slowly, and a warp's share is small.
__device__ int add(int64_t& digit, int64_t limit, int more) {
    digit += more;
    if (digit < limit) return 0;
    const auto beyond = static_cast<uint32_t>(digit - limit);  // less than `more`
    const auto divisor = static_cast<uint32_t>(limit < INT32_MAX ? limit : INT32_MAX);
    digit = beyond % divisor;
    return static_cast<int>(1 + beyond / divisor);
}

// A run of a row, by its place along each of the outer dimensions.
struct Run {
    int64_t outer, middle, inner;

    __device__ static Run at(const PieceRow& row, int64_t index) {
        const int64_t rest = index / row.outer[2].count;
        return {rest / row.outer[1].count, rest % row.outer[1].count, index % row.outer[2].count};
    }

    __device__ Run after(const PieceRow& row, int runs) const {
        Run run = *this;
        run.outer += add(run.middle, row.outer[1].count, add(run.inner, row.outer[2].count, runs));
        return run;
    }

    // Where it begins in the tensor.
    __device__ int64_t offset(const PieceRow& row) const {
        return outer * row.outer[0].stride + middle * row.outer[1].stride + inner * row.outer[2].stride;
    }
};

// The bytes [first, last) of a row with long runs.
template <bool pack>
__device__ void copy_long_runs(const PieceRow& row, Pair begin, int64_t first, int64_t last) {
    Run run = Run::at(row, first / row.run);
    int64_t in_run = first % row.run;
    while (first < last) {
        const int64_t left = row.run - in_run, wanted = last - first;
        const int bytes = static_cast<int>(left < wanted ? left : wanted);
        copy_contiguous<pack>({begin.in_tensor + run.offset(row) + in_run, begin.in_buffer + first}, bytes);
        first += bytes;
        in_run = 0;
        run = run.after(row, 1);
    }
}

// The same for short runs: lanes take units of several runs at once.
template <bool pack>
__device__ void copy_short_runs(const PieceRow& row, Pair begin, int64_t first, int64_t last) {
    uint64_t bits =
        row.run | reinterpret_cast<uintptr_t>(begin.in_tensor) | reinterpret_cast<uintptr_t>(begin.in_buffer);
    for (const auto& dimension : row.outer) {
        if (dimension.count > 1) bits |= dimension.stride;
    }
    const int unit = unit_of(bits);
    // A unit belongs to the warp that has its first byte.
    first = (first + unit - 1) / unit * unit;
    const Run run = Run::at(row, first / row.run);
    const int in_run = static_cast<int>(first % row.run), units_per_run = static_cast<int>(row.run) / unit;
    copy_units_of<pack>(unit, static_cast<int>((last - first + unit - 1) / unit), [&](int i, int size) {
        const int unit_of_runs = in_run / unit + i;
        const int64_t offset = run.after(row, unit_of_runs / units_per_run).offset(row);
        return Pair{begin.in_tensor + offset + unit_of_runs % units_per_run * size, begin.in_buffer + first + i * size};
    });
}

template <bool pack>
__global__ void copy_pieces_kernel(PieceArguments x, int64_t bytes_per_warp) {
    int64_t first = warp_index() * bytes_per_warp;
    if (first >= x.total) return;
    const int64_t last = first + bytes_per_warp < x.total ? first + bytes_per_warp : x.total;
    int64_t index = last_at_most(x.count, first, [&](int64_t i) { return x.rows[i].before; });
    for (; first < last; ++index) {
        const PieceRow row = x.rows[index];
        const Pair begin = {x.addresses[row.tensor] + row.tensor_offset, x.buffer + row.buffer_offset};
        const int64_t row_end = index + 1 < x.count ? x.rows[index + 1].before : x.total;
        const int64_t end = row_end < last ? row_end : last;
        if (row.run < kLongRun) {
            copy_short_runs<pack>(row, begin, first - row.before, end - row.before);
        } else {
            copy_long_runs<pack>(row, begin, first - row.before, end - row.before);
        }
        first = end;
    }
}

}  // namespace

void copy_pieces(const PieceArguments& x, bool pack, cudaStream_t stream) {
    const int64_t share = x.total / kManyWarps / kMinBytesPerWarp * kMinBytesPerWarp;
    const int64_t bytes_per_warp = std::clamp(share, kMinBytesPerWarp, kMaxBytesPerWarp);
    const int64_t warps = (x.total + bytes_per_warp - 1) / bytes_per_warp;
    launch(pack ? "pack_pieces" : "unpack_pieces", pack ? copy_pieces_kernel<true> : copy_pieces_kernel<false>,
           blocks_for(warps), kThreads, stream, x, bytes_per_warp);
}

}  // namespace areal_mega
