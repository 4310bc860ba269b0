// Copies of strided bytes on one thread. Compiled once for each instruction set, so no functions of the standard
// library here: the linker keeps one copy of an inline function, perhaps the one compiled for a newer CPU.
#include "lanes.h"
#include "pieces.h"
#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace areal_mega::AREAL_MEGA_ISA {
namespace {

// Shorter runs than this are not worth the care for alignment that streaming stores need.
constexpr int64_t kStreamingRun = 1024;

// Stores that leave no copy in the caches; `to` is aligned to a vector.
void store_past_caches(uint8_t* to, Vector<uint8_t> x) {
#if defined(__AVX512F__)
    _mm512_stream_si512(reinterpret_cast<__m512i*>(to), reinterpret_cast<__m512i>(x));
#elif defined(__AVX2__)
    _mm256_stream_si256(reinterpret_cast<__m256i*>(to), reinterpret_cast<__m256i>(x));
#elif defined(__SSE2__)
    _mm_stream_si128(reinterpret_cast<__m128i*>(to), reinterpret_cast<__m128i>(x));
#else
    store(to, x);
#endif
}

// What was stored past the caches is seen by whoever sees what this thread writes next.
void finish_streaming() {
#if defined(__SSE2__)
    _mm_sfence();
#endif
}

void stream(uint8_t* to, const uint8_t* from, int64_t bytes) {
    const int64_t head = -reinterpret_cast<uintptr_t>(to) % kVectorBytes;
    __builtin_memcpy(to, from, head);
    int64_t i = head;
    for (; i + 4 * kVectorBytes <= bytes; i += 4 * kVectorBytes) {
        Vector<uint8_t> x[4];
        for (int j = 0; j < 4; ++j) x[j] = load(from + i + j * kVectorBytes);
        for (int j = 0; j < 4; ++j) store_past_caches(to + i + j * kVectorBytes, x[j]);
    }
    __builtin_memcpy(to + i, from + i, bytes - i);
}

// How runs of one length are copied; one type for each, so that lengths of a single number need no call.
struct AnyRun {
    int64_t bytes;
    void copy(uint8_t* to, const uint8_t* from) const { __builtin_memcpy(to, from, bytes); }
};
struct LongRun {
    int64_t bytes;
    void copy(uint8_t* to, const uint8_t* from) const { stream(to, from, bytes); }
};
template <int length>
struct FixedRun {
    static constexpr int64_t bytes = length;
    void copy(uint8_t* to, const uint8_t* from) const { __builtin_memcpy(to, from, length); }
};

// The whole runs [first, last) of a row; in_buffer is where the first one stands.
template <bool pack, typename Run>
void copy_runs(const PieceRow& row, Run run, uint8_t* tensor, uint8_t* in_buffer, int64_t first, int64_t last) {
    const auto& [outer, middle, inner] = row.outer;
    while (first < last) {
        const int64_t i = first % inner.count, rest = first / inner.count;
        const int64_t runs = last - first < inner.count - i ? last - first : inner.count - i;
        uint8_t* in_tensor =
            tensor + rest / middle.count * outer.stride + rest % middle.count * middle.stride + i * inner.stride;
        for (int64_t j = 0; j < runs; ++j, in_tensor += inner.stride, in_buffer += run.bytes) {
            if constexpr (pack) {
                run.copy(in_buffer, in_tensor);
            } else {
                run.copy(in_tensor, in_buffer);
            }
        }
        first += runs;
    }
}

template <bool pack>
void copy_whole_runs(const PieceRow& row, uint8_t* tensor, uint8_t* buffer, int64_t first, int64_t last,
                     bool streaming) {
    uint8_t* in_buffer = buffer + first * row.run;
    if (row.run == 1) return copy_runs<pack>(row, FixedRun<1>{}, tensor, in_buffer, first, last);
    if (row.run == 2) return copy_runs<pack>(row, FixedRun<2>{}, tensor, in_buffer, first, last);
    if (row.run == 4) return copy_runs<pack>(row, FixedRun<4>{}, tensor, in_buffer, first, last);
    if (row.run == 8) return copy_runs<pack>(row, FixedRun<8>{}, tensor, in_buffer, first, last);
    if (streaming && row.run >= kStreamingRun) {
        return copy_runs<pack>(row, LongRun{row.run}, tensor, in_buffer, first, last);
    }
    copy_runs<pack>(row, AnyRun{row.run}, tensor, in_buffer, first, last);
}

// The bytes [first, last) of one run of a row.
template <bool pack>
void copy_part(const PieceRow& row, uint8_t* tensor, uint8_t* buffer, int64_t index, int64_t first, int64_t last,
               bool streaming) {
    PieceRow part = row;
    part.run = last - first;
    const int64_t skipped = index * row.run + first - index * part.run;
    copy_whole_runs<pack>(part, tensor + first, buffer + skipped, index, index + 1, streaming);
}

// The bytes [first, last) of a row: the rest of a run, whole runs, the beginning of a run.
template <bool pack>
void copy_row(const PieceRow& row, uint8_t* tensor, uint8_t* buffer, int64_t first, int64_t last, bool streaming) {
    const int64_t run = first / row.run, end = last / row.run;
    const int64_t begun = first % row.run, left = last % row.run;
    if (run == end) return copy_part<pack>(row, tensor, buffer, run, begun, left, streaming);
    if (begun) copy_part<pack>(row, tensor, buffer, run, begun, row.run, streaming);
    copy_whole_runs<pack>(row, tensor, buffer, run + (begun > 0), end, streaming);
    if (left) copy_part<pack>(row, tensor, buffer, end, 0, left, streaming);
}

template <bool pack>
void copy(const PieceArguments& x, int64_t row, int64_t first, int64_t last, bool streaming) {
    for (; first < last; ++row) {
        const PieceRow& r = x.rows[row];
        const int64_t row_end = row + 1 < x.count ? x.rows[row + 1].before : x.total;
        const int64_t end = row_end < last ? row_end : last;
        copy_row<pack>(r, x.addresses[r.tensor] + r.tensor_offset, x.buffer + r.buffer_offset, first - r.before,
                       end - r.before, streaming);
        first = end;
    }
    if (streaming) finish_streaming();
}

}  // namespace

void copy_pieces(const PieceArguments& x, int64_t row, int64_t first, int64_t last, bool pack, bool streaming) {
    if (pack) {
        copy<true>(x, row, first, last, streaming);
    } else {
        copy<false>(x, row, first, last, streaming);
    }
}

}  // namespace areal_mega::AREAL_MEGA_ISA
