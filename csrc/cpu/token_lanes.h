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
    const __m128i packed = _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes));
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

// The next `count` tokens from t on; at most a vector of them.
template <typename T>
class Tokens {
  public:
    Tokens(const bool* loss_mask, int64_t t, int64_t end)
        : t_(t), count_(end - t < kLanes<T> ? static_cast<int>(end - t) : kLanes<T>) {
        uint8_t bytes[16] = {};
        if (count_ == kLanes<T>) {
            __builtin_memcpy(bytes, loss_mask + t, kLanes<T>);
        } else {
            __builtin_memcpy(bytes, loss_mask + t, count_);
        }
        uint64_t words[2];
        __builtin_memcpy(words, bytes, sizeof words);
        any_ = words[0] | words[1];
        valid_ = widened<T>(bytes) != 0;
    }

    // Whether any of them is valid.
    bool any() const { return any_; }
    Mask<T> valid() const { return valid_; }

    // x at the valid tokens, 0 at the masked ones and where x is null.
    Vector<T> of(const T* x) const {
        Vector<T> loaded = {};
        if (!x) return loaded;
        if (count_ == kLanes<T>) {
            loaded = load(x + t_);
        } else {
            __builtin_memcpy(&loaded, x + t_, count_ * sizeof(T));
        }
        return valid_ ? loaded : Vector<T>{};
    }

    void put(T* to, Vector<T> x) const {
        if (count_ == kLanes<T>) {
            store(to + t_, x);
        } else {
            __builtin_memcpy(to + t_, &x, count_ * sizeof(T));
        }
    }

  private:
    int64_t t_;
    int count_;
    bool any_;
    Mask<T> valid_;
};

// `count` sums over tokens. A few vectors are summed in T; those sums, and the lanes at the end, in double.
template <typename T, int count>
class Sums {
  public:
    // Calls add(tokens, sums) for the tokens [begin, end), a vector at a time: what it adds to sums[i] is summed.
    template <typename Add>
    void over(const bool* loss_mask, int64_t begin, int64_t end, const Add& add) {
        for (int64_t t = begin; t < end;) {
            Vector<T> recent[count] = {};
            for (int i = 0; i < kVectors && t < end; ++i, t += kLanes<T>) add(Tokens<T>(loss_mask, t, end), recent);
            for (int i = 0; i < count; ++i) {
                for (int lane = 0; lane < kLanes<T>; ++lane) lanes_[i][lane] += recent[i][lane];
            }
        }
    }

    double operator[](int i) const {
        double sum = 0;
        for (int lane = 0; lane < kLanes<T>; ++lane) sum += lanes_[i][lane];
        return sum;
    }

  private:
    static constexpr int kVectors = 8;
    double lanes_[count][kLanes<T>] = {};
};

template <typename T>
Vector<T> clamp(Vector<T> x, T low, T high) {
    const Vector<T> at_most = x > high ? Vector<T>{} + high : x;
    return at_most < low ? Vector<T>{} + low : at_most;
}

template <typename T>
Vector<T> absolute(Vector<T> x) {
    return x < 0 ? -x : x;
}

// 1 where the mask is set, otherwise 0.
template <typename T>
Vector<T> indicator(Mask<T> mask) {
    return mask ? Vector<T>{} + 1 : Vector<T>{};
}

}  // namespace
}  // namespace areal_mega::AREAL_MEGA_ISA
