// Sequences into parts of about equal tokens, and into bins under a budget.
#pragma once

#include <cstdint>

namespace areal_mega {

// Cuts `count` costs (>= 0, their sum below 2^63) into `parts` by the largest differencing method; part_of [count].
// equal_counts: the same number in each part; `count` is then divisible by `parts`.
void balance(const int64_t* costs, int64_t count, int64_t parts, bool equal_counts, int64_t* part_of);

// First fit, largest first, into bins of `budget`; no cost is above it. bin_of [count], numbered as they are opened.
void first_fit(const int64_t* costs, int64_t count, int64_t budget, int64_t* bin_of);

}  // namespace areal_mega
