// e^(scale x) on vectors, where it is at most 1 and tiny results may be 0: faster than exponential.h.
#pragma once

#include "lanes.h"

namespace areal_mega::AREAL_MEGA_ISA {
namespace {

// 2^f = 1 + f (c[0] + c[1] f + ...) for |f| <= 1/2, fitted to a relative error of 3e-9 for float (2e-8 with rounded
// coefficients) and 4e-17 for double.
template <typename T>
struct ScaledExpConstants;

template <>
struct ScaledExpConstants<float> {
    using Bits = int32_t;
    static constexpr int kMantissaBits = 23;
    static constexpr float kMagic = 0x1.8p23f + 127;
    static constexpr float kLowest = -88;
    static constexpr float kCoefficients[] = {0.693147242f,   0.240226522f,   0.0555031039f,
                                              0.00961769279f, 0.00134066748f, 0.000155947593f};
};

template <>
struct ScaledExpConstants<double> {
    using Bits = int64_t;
    static constexpr int kMantissaBits = 52;
    static constexpr double kMagic = 0x1.8p52 + 1023;
    static constexpr double kLowest = -709;
    static constexpr double kCoefficients[] = {0.6931471805599457,     0.24022650695910097,    0.055504108664790344,
                                               0.009618129107606968,   0.00133335581534484,    0.00015403530441629955,
                                               1.5252727380037094e-05, 1.3215442640035036e-06, 1.0180648689683403e-07,
                                               7.072577479056917e-09,  4.078073159307801e-10};
};

// x -> e^(scale x) for scale x <= 0, to about one unit in the last place plus what rounding scale x costs; 0 where that
// is less than the smallest normal number. NaN stays.
template <typename T>
struct ScaledExp {
    T scale;  // of 2^x
    T lowest;

    explicit ScaledExp(T scale_of_e) : scale(scale_of_e * T(1.4426950408889634074)), lowest(lowest_of(scale_of_e)) {}

    // x, or where it is less, the lowest argument there is, whose result is 0.
    Vector<T> bounded(Vector<T> x) const { return larger<T>(Vector<T>{} + lowest, x); }

    // With n the integer nearest to scale x, in the lowest bits of the sum with the magic number together with the
    // exponent's bias: 2^n 2^(scale x - n).
    Vector<T> operator()(Vector<T> bounded) const {
        using E = ScaledExpConstants<T>;
        const Vector<T> shifted = bounded * scale + E::kMagic;
        const Vector<T> f = bounded * scale - (shifted - E::kMagic);
        constexpr int terms = sizeof(E::kCoefficients) / sizeof(T);
        Vector<T> sum = Vector<T>{} + E::kCoefficients[terms - 1];
        for (int i = terms - 2; i >= 0; --i) sum = sum * f + E::kCoefficients[i];
        using Bits = Vector<typename E::Bits>;
        return (sum * f + T{1}) * reinterpret_cast<Vector<T>>(reinterpret_cast<Bits>(shifted) << E::kMantissaBits);
    }

  private:
    static T lowest_of(T scale) {
        const T limit = ScaledExpConstants<T>::kLowest / scale, most = -(sizeof(T) == 4 ? __FLT_MAX__ : __DBL_MAX__);
        return limit < most ? most : limit;
    }
};

}  // namespace
}  // namespace areal_mega::AREAL_MEGA_ISA
