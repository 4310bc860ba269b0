// e^x on vectors, for x in +-80 and NaN.
#pragma once

#include "lanes.h"

namespace areal_mega::AREAL_MEGA_ISA {
namespace {

template <typename T>
using Bits = Vector<std::conditional_t<sizeof(T) == 4, int32_t, int64_t>>;

template <typename T>
struct Exponential {
    Vector<T> power;      // e^x
    Vector<T> minus_one;  // e^x - 1, without cancellation near x = 0
    Vector<T> excess;     // e^x - 1 - x, without cancellation near x = 0
};

// What differs between float and double: added and taken away, `rounding` leaves the nearest integer and has it in its
// lowest bits; n * ln2_high is exact for all n needed here; the series ends below the rounding of T.
template <typename T>
struct ExponentialConstants;
template <>
struct ExponentialConstants<float> {
    static constexpr float rounding = 0x1.8p23f, ln2_high = 0x1.63p-1f, ln2_low = -0x1.bd0106p-13f;
    static constexpr int bias = 127, fraction_bits = 23, terms = 8;
};
template <>
struct ExponentialConstants<double> {
    static constexpr double rounding = 0x1.8p52, ln2_high = 0x1.62e42feep-1, ln2_low = 0x1.a39ef35793c76p-33;
    static constexpr int bias = 1023, fraction_bits = 52, terms = 14;
};

// 1/k! + x/(k+1)! + ... up to the last term.
template <typename T, int k>
Vector<T> series(Vector<T> x, double inverse_factorial) {
    if constexpr (k == ExponentialConstants<T>::terms) {
        return Vector<T>{} + static_cast<T>(inverse_factorial);
    } else {
        return series<T, k + 1>(x, inverse_factorial / (k + 1)) * x + static_cast<T>(inverse_factorial);
    }
}

// x = n ln2 + r with |r| <= ln2 / 2, and e^x = 2^n (1 + r + r^2 (1/2! + r/3! + ...)).
template <typename T>
Exponential<T> exponential(Vector<T> x) {
    using Constants = ExponentialConstants<T>;
    constexpr T log2e = static_cast<T>(1.4426950408889634);
    const Vector<T> shifted = x * log2e + Constants::rounding;
    const Vector<T> n = shifted - Constants::rounding;
    const Vector<T> r = x - n * Constants::ln2_high - n * Constants::ln2_low;
    const Vector<T> beyond_linear = r * r * series<T, 2>(r, 0.5);
    const Vector<T> zero_shift = Vector<T>{} + Constants::rounding;
    const Bits<T> whole = (Bits<T>)shifted - (Bits<T>)zero_shift;
    const Vector<T> scale = (Vector<T>)((whole + Constants::bias) << Constants::fraction_bits);
    const Vector<T> scaled = scale * (r + beyond_linear);
    const Vector<T> minus_one = scaled + (scale - 1);
    return {scaled + scale, minus_one, whole == 0 ? beyond_linear : minus_one - x};
}

}  // namespace
}  // namespace areal_mega::AREAL_MEGA_ISA
