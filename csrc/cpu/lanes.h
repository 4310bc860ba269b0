// Vectors as wide as the instruction set that this file is compiled for, from the compiler's vector extension
// (GCC and Clang). Everything has internal linkage: the same names are compiled for several instruction sets.
#pragma once

#include <cstdint>
#include <type_traits>
#include <utility>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace areal_mega::AREAL_MEGA_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <typename T>
constexpr int kLanes = kVectorBytes / sizeof(T);

// T[kLanes<T>] with arithmetic; a scalar operand counts for every lane.
template <typename T>
struct VectorOf {
    typedef T type __attribute__((vector_size(kVectorBytes)));
};
template <typename T>
using Vector = typename VectorOf<T>::type;

template <typename T>
Vector<T> load(const T* from) {
    Vector<T> x;
    __builtin_memcpy(&x, from, sizeof x);
    return x;
}

template <typename T>
void store(T* to, Vector<T> x) {
    __builtin_memcpy(to, &x, sizeof x);
}

// The larger one in each lane; y's where one of them is NaN.
template <typename T>
Vector<T> larger(Vector<T> x, Vector<T> y) {
#if defined(__AVX512F__)  // for which GCC makes two instructions of the general form
    if constexpr (sizeof(T) == 4) return _mm512_maskz_max_ps(-1, x, y);
    if constexpr (sizeof(T) == 8) return _mm512_maskz_max_pd(-1, x, y);
#else
    return x > y ? x : y;
#endif
}

// The smaller one in each lane; y's where one of them is NaN.
template <typename T>
Vector<T> smaller(Vector<T> x, Vector<T> y) {
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4) return _mm512_maskz_min_ps(-1, x, y);
    if constexpr (sizeof(T) == 8) return _mm512_maskz_min_pd(-1, x, y);
#else
    return x < y ? x : y;
#endif
}

template <typename T, int by, std::size_t... lane>
Vector<T> shift_lanes(Vector<T> x, Vector<T> next, std::index_sequence<lane...>) {
#if defined(__clang__) || __GNUC__ >= 12
    return __builtin_shufflevector(x, next, (by + lane)...);
#else
    using Index = Vector<std::conditional_t<sizeof(T) == 4, int32_t, int64_t>>;
    return __builtin_shuffle(x, next, Index{(by + lane)...});
#endif
}

// Lane i becomes lane i + by of x, or where x ends, of `next` that follows it.
template <typename T, int by>
Vector<T> shift(Vector<T> x, Vector<T> next) {
    return shift_lanes<T, by>(x, next, std::make_index_sequence<kLanes<T>>{});
}

}  // namespace
}  // namespace areal_mega::AREAL_MEGA_ISA
