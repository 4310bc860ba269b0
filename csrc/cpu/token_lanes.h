// Per-token tensors on vectors of tokens: masks, ends that do not fill a vector, and sums.
#pragma once

#include "exponential.h"

namespace areal_mega::AREAL_MEGA_ISA {
namespace {

// Lane by lane all ones or all zeros, as comparisons give it.
template <typename T>
using Mask = Bits<T>;

// Lane i is byte i.
template <typename T>
Mask<T> widened(const uint8_t* bytes) {
#if defined(__AVX2__)  // for which GCC moves the bytes of the general form one by one; maskz spares a warning
    __m128i packed;
    if constexpr (kLanes<T> == 16) {
        packed = _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes));
    } else if constexpr (kLanes<T> == 8) {
        packed = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(bytes));
    } else {
        int32_t word;
        __builtin_memcpy(&word, bytes, sizeof word);
        packed = _mm_cvtsi32_si128(word);
    }
#endif
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4) return (Mask<T>)_mm512_maskz_cvtepu8_epi32(-1, packed);
    if constexpr (sizeof(T) == 8) return (Mask<T>)_mm512_maskz_cvtepu8_epi64(-1, packed);
#elif defined(__AVX2__)
    if constexpr (sizeof(T) == 4) return (Mask<T>)_mm256_cvtepu8_epi32(packed);
    if constexpr (sizeof(T) == 8) return (Mask<T>)_mm256_cvtepu8_epi64(packed);
#else
    typedef uint8_t Bytes __attribute__((vector_size(kLanes<T>)));
    Bytes packed;
    __builtin_memcpy(&packed, bytes, sizeof packed);
    return __builtin_convertvector(packed, Mask<T>);
#endif
}

// A vector of tokens from t on, of which the last ones may not exist unless it is `full`.
template <typename T, bool full>
class Tokens {
  public:
    Tokens(const bool* loss_mask, int64_t t, int count) : t_(t), count_(count) {
        uint8_t bytes[kLanes<T>] = {};
        if constexpr (!full) __builtin_memcpy(bytes, loss_mask + t, count);
        valid_ = widened<T>(full ? reinterpret_cast<const uint8_t*>(loss_mask + t) : bytes) != 0;
    }

    Mask<T> valid() const { return valid_; }

    // x at the valid tokens, 0 at the masked ones and where x is null.
    Vector<T> of(const T* x) const {
        Vector<T> loaded = {};
        if (!x) return loaded;
        if constexpr (full) {
            loaded = load(x + t_);
        } else {
            __builtin_memcpy(&loaded, x + t_, count_ * sizeof(T));
        }
        return valid_ ? loaded : Vector<T>{};
    }

    void put(T* to, Vector<T> x) const {
        if constexpr (full) {
            store(to + t_, x);
        } else {
            __builtin_memcpy(to + t_, &x, count_ * sizeof(T));
        }
    }

  private:
    int64_t t_;
    int count_;
    Mask<T> valid_;
};

// Calls body(tokens, i) for vector i of the tokens [begin, end).
template <typename T, typename Body>
void over_vectors(const bool* loss_mask, int64_t begin, int64_t end, const Body& body) {
    int64_t t = begin;
    int i = 0;
    for (; t + kLanes<T> <= end; t += kLanes<T>) body(Tokens<T, true>(loss_mask, t, kLanes<T>), i++);
    if (t < end) body(Tokens<T, false>(loss_mask, t, static_cast<int>(end - t)), i);
}

// So many vectors are summed in T; those sums, and the lanes at the end, in double.
constexpr int kVectorsPerRun = 8;

// Calls body(begin, end) for each run of the tokens [begin, end).
template <typename T, typename Body>
void over_runs(int64_t begin, int64_t end, const Body& body) {
    constexpr int64_t step = kVectorsPerRun * kLanes<T>;
    for (int64_t t = begin; t < end; t += step) body(t, t + step < end ? t + step : end);
}

// `count` sums over tokens.
template <typename T, int count>
class Sums {
  public:
    // of_run: the sum over a run.
    void add(int i, Vector<T> of_run) {
        for (int lane = 0; lane < kLanes<T>; ++lane) lanes_[i][lane] += of_run[lane];
    }

    double operator[](int i) const {
        double sum = 0;
        for (int lane = 0; lane < kLanes<T>; ++lane) sum += lanes_[i][lane];
        return sum;
    }

  private:
    double lanes_[count][kLanes<T>] = {};
};

// NaN stays.
template <typename T>
Vector<T> clamp(Vector<T> x, T low, T high) {
    return larger<T>(Vector<T>{} + low, smaller<T>(Vector<T>{} + high, x));
}

template <typename T>
Vector<T> absolute(Vector<T> x) {
    constexpr int64_t all_but_sign = sizeof(T) == 4 ? 0x7fffffff : 0x7fffffffffffffff;
    return (Vector<T>)((Bits<T>)x & (Bits<T>{} + all_but_sign));
}

// Adds 1 where the mask is set.
template <typename T>
void count(Vector<T>& sum, Mask<T> mask) {
    sum = mask ? sum + 1 : sum;
}

}  // namespace
}  // namespace areal_mega::AREAL_MEGA_ISA
