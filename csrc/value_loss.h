// The critic's loss on packed tokens; areal_mega/ops/value_loss.py has the formula.
#pragma once

#include <cstdint>

namespace areal_mega {

// What is summed over tokens: the loss, and VALUE_STATISTICS in their order.
enum ValueSum { kValueLoss, kValueTokens, kValue, kReturn, kError, kValueClipped, kReturnSquared, kValueSums };

// All pointers are contiguous host memory; T is float or double. [N] unless said otherwise.
template <typename T>
struct ValueLossArguments {
    const T* values;
    const T* old_values;
    const T* returns;
    const bool* loss_mask;
    const T* loss_weight;
    T* loss;             // []
    double* statistics;  // [kValueSums - 1]
    T* grad_values;
    int64_t tokens;
    T clip;  // infinite: off
};

}  // namespace areal_mega
