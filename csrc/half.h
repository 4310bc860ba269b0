// The 16-bit numbers of tensors, as they lie in memory.
#pragma once

#include <cstdint>

namespace areal_mega {

struct BFloat16 {
    uint16_t bits;
};

struct Float16 {
    uint16_t bits;
};

// The type that arithmetic on numbers of type T is done in.
template <typename T>
struct ComputeOf {
    using type = float;
};
template <>
struct ComputeOf<double> {
    using type = double;
};
template <typename T>
using Compute = typename ComputeOf<T>::type;

}  // namespace areal_mega
