// The two passes over rows of logits, z = logits / temperature.
#pragma once

#include "half.h"

namespace areal_mega {

// T: float, double, BFloat16 or Float16. A row's elements are contiguous; its first one needs no alignment.
template <typename T>
struct LogitStatisticsArguments {
    const T* logits;
    const int64_t* targets;  // [rows], the target's column; one that is not in [0, columns) is not here
    Compute<T>* statistics;  // [4, rows]: max z, sum e^(z - max), sum e^(z - max) (z - max), z of the target or -inf
    int64_t rows;
    int64_t columns;
    int64_t stride;  // elements from row to row
    Compute<T> temperature;
};

// out = (g ([j = target] - p) - h p (log p + H)) / temperature, where log p = z - lse.
template <typename T>
struct LogitGradientArguments {
    const T* logits;
    const int64_t* targets;          // [rows]
    const Compute<T>* lse;           // [rows]
    const Compute<T>* entropy;       // [rows], H
    const Compute<T>* grad_logprob;  // [rows], g, or null: 0
    const Compute<T>* grad_entropy;  // [rows], h, or null: 0
    T* out;                          // may be logits
    int64_t rows;
    int64_t columns;
    int64_t width;  // columns of out: those after `columns` become 0
    int64_t stride;
    int64_t out_stride;
    Compute<T> temperature;
};

}  // namespace areal_mega
