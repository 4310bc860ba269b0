// Statistics and gradient of whole rows of logits on one thread. Compiled once for each instruction set, so no
// functions of the standard library here (see gae_kernel.cpp).
#include "half_lanes.h"
#include "logit_rows.h"
#include "scaled_exp.h"

namespace areal_mega::AREAL_MEGA_ISA {
namespace {

constexpr double kInfinity = __builtin_huge_val();

// Logits that are read twice, for their maximum and for the sums; they fit in the first cache.
constexpr int64_t kBlock = 2048;

// Vectors that are worked on at the same time, so that the processor need not wait for a result.
constexpr int kUnroll = 4;

// Reading runs this many bytes ahead of the arithmetic.
constexpr int64_t kAhead = 4096;

// Vectors of logits are as wide as vectors of what they are computed in.
template <typename T>
constexpr int kWidth = kLanes<Compute<T>>;

template <typename T>
Vector<Compute<T>> fill(Compute<T> x) {
    return Vector<Compute<T>>{} + x;
}

// The first `count` lanes; the others are -inf, which neither raises a maximum nor adds to a sum.
template <typename T>
Vector<Compute<T>> load_some(const T* from, int64_t count) {
    T lanes[kWidth<T>];
    write(lanes, fill<T>(-kInfinity));
    __builtin_memcpy(lanes, from, count * sizeof(T));
    return read(lanes);
}

template <typename T>
void store_some(T* to, Vector<Compute<T>> x, int64_t count) {
    T lanes[kWidth<T>];
    write(lanes, x);
    __builtin_memcpy(to, lanes, count * sizeof(T));
}

// Calls step(i, vector of logits) for all of `count` logits: i says which of kUnroll accumulators is next.
template <typename T, typename Step>
void over_vectors(const T* logits, int64_t count, Step step) {
    constexpr int width = kWidth<T>;
    int64_t k = 0;
    for (; k + kUnroll * width <= count; k += kUnroll * width) {
#pragma GCC unroll 4
        for (int i = 0; i < kUnroll; ++i) {
            __builtin_prefetch(reinterpret_cast<const char*>(logits + k + i * width) + kAhead);
            step(i, read(logits + k + i * width));
        }
    }
    for (; k + width <= count; k += width) step(0, read(logits + k));
    if (k < count) step(0, load_some(logits + k, count - k));
}

template <typename C>
double sum_of_lanes(const Vector<C> (&x)[kUnroll]) {
    double sum = 0;
    const Vector<C> lanes = (x[0] + x[1]) + (x[2] + x[3]);
    for (int i = 0; i < kLanes<C>; ++i) sum += lanes[i];
    return sum;
}

// Ignores NaN: that shows in the sums.
template <typename T>
Compute<T> block_maximum(const T* logits, int64_t count) {
    using C = Compute<T>;
    Vector<C> tops[kUnroll];
    for (auto& top : tops) top = fill<T>(-kInfinity);
    over_vectors(logits, count, [&](int i, Vector<C> x) { tops[i] = larger<C>(x, tops[i]); });
    C most = -kInfinity;
    for (const auto& top : tops) {
        for (int i = 0; i < kLanes<C>; ++i) most = top[i] > most ? top[i] : most;
    }
    return most;
}

// The sums of a row so far, relative to its largest logit so far; `weighted` in logits, not in z.
template <typename T>
struct RowSums {
    using C = Compute<T>;
    C maximum = -kInfinity;
    double total = 0;
    double weighted = 0;

    void raise_maximum(C to, C temperature) {
        if (!(to > maximum)) return;
        if (maximum > -kInfinity) {
            const double below = static_cast<double>(maximum) - to, factor = __builtin_exp(below / temperature);
            // Where the factor is 0, below may be infinite. A NaN in the sums stays.
            weighted = factor * (weighted + (factor > 0 ? below * total : 0));
            total *= factor;
        }
        maximum = to;
    }

    void add_block(const T* logits, int64_t count, C temperature, const ScaledExp<C>& exp) {
        raise_maximum(block_maximum(logits, count), temperature);
        const C shift = maximum > -kInfinity ? maximum : 0;
        Vector<C> totals[kUnroll] = {}, weighteds[kUnroll] = {};
        over_vectors(logits, count, [&](int i, Vector<C> x) {
            const Vector<C> below = exp.bounded(x - shift), e = exp(below);
            totals[i] += e;
            weighteds[i] += e * below;
        });
        total += sum_of_lanes<C>(totals);
        weighted += sum_of_lanes<C>(weighteds);
    }
};

template <typename T>
Compute<T> value(const T* at) {
    return load_some(at, 1)[0];
}

template <typename T>
void row_gradient(const LogitGradientArguments<T>& x, int64_t row, Compute<T> g, Compute<T> h) {
    using C = Compute<T>;
    const T* logits = x.logits + row * x.stride;
    T* out = x.out + row * x.out_stride;
    const C lse = x.lse[row], entropy = x.entropy[row], scale = 1 / x.temperature;
    const C constant = -(g + h * entropy) * scale, slope = -h * scale;
    const ScaledExp<C> exp(1);
    const auto gradient = [&](Vector<C> logit) {
        const Vector<C> above_lse = logit * scale - lse;
        const Vector<C> log_p = exp.bounded(above_lse > 0 ? Vector<C>{} : above_lse);  // > 0 by rounding only
        return exp(log_p) * (slope * log_p + constant);
    };
    constexpr int width = kWidth<T>;
    int64_t k = 0;
    for (; k + width <= x.columns; k += width) {
        __builtin_prefetch(reinterpret_cast<const char*>(logits + k) + kAhead);
        write(out + k, gradient(read(logits + k)));
    }
    if (k < x.columns) store_some(out + k, gradient(load_some(logits + k, x.columns - k)), x.columns - k);
}

// At the target, where 1 - p would cancel. z of the target is rounded as it is in the statistics.
template <typename C>
C target_gradient(C logit, C temperature, C lse, C entropy, C g, C h) {
    const C log_p = lse > -kInfinity || lse != lse ? logit / temperature - lse : -kInfinity;
    const double p = __builtin_exp(log_p);
    const double through_entropy = p == 0 ? 0 : h * p * (log_p + entropy);
    return (-g * __builtin_expm1(log_p > 0 ? 0 : log_p) - through_entropy) / temperature;
}

template <typename T>
void zero(T* from, int64_t count) {
    __builtin_memset(static_cast<void*>(from), 0, count * sizeof(T));
}

}  // namespace

template <typename T>
void logit_statistics(const LogitStatisticsArguments<T>& x, int64_t first, int64_t last) {
    using C = Compute<T>;
    const ScaledExp<C> exp(1 / x.temperature);
    for (int64_t row = first; row < last; ++row) {
        const T* logits = x.logits + row * x.stride;
        RowSums<T> sums;
        for (int64_t begin = 0; begin < x.columns; begin += kBlock) {
            const int64_t rest = x.columns - begin;
            sums.add_block(logits + begin, rest < kBlock ? rest : kBlock, x.temperature, exp);
        }
        const int64_t target = x.targets[row];
        const bool here = target >= 0 && target < x.columns;
        const C top = sums.total != sums.total && sums.maximum < kInfinity ? C(sums.total) : sums.maximum;
        x.statistics[row] = top / x.temperature;
        x.statistics[x.rows + row] = sums.total;
        x.statistics[2 * x.rows + row] = sums.weighted / x.temperature;
        x.statistics[3 * x.rows + row] = here ? value(logits + target) / x.temperature : C(-kInfinity);
    }
}

template <typename T>
void logit_gradient(const LogitGradientArguments<T>& x, int64_t first, int64_t last) {
    using C = Compute<T>;
    for (int64_t row = first; row < last; ++row) {
        T* out = x.out + row * x.out_stride;
        const C g = x.grad_logprob ? x.grad_logprob[row] : 0, h = x.grad_entropy ? x.grad_entropy[row] : 0;
        const C lse = x.lse[row];
        const int64_t target = x.targets[row];
        const bool here = target >= 0 && target < x.columns, used = g != 0 || h != 0;
        const C logit = here ? value(x.logits + row * x.stride + target) : 0;  // before out, perhaps logits, is written
        if (used && !(lse == -kInfinity)) {
            row_gradient(x, row, g, h);
        } else {
            zero(out, x.columns);
        }
        zero(out + x.columns, x.width - x.columns);
        if (used && here) {
            const C at_target = target_gradient<C>(logit, x.temperature, lse, x.entropy[row], g, h);
            store_some(out + target, fill<T>(at_target), 1);
        }
    }
}

#define AREAL_MEGA_INSTANTIATE(T)                                                         \
    template void logit_statistics(const LogitStatisticsArguments<T>&, int64_t, int64_t); \
    template void logit_gradient(const LogitGradientArguments<T>&, int64_t, int64_t);
AREAL_MEGA_INSTANTIATE(float)
AREAL_MEGA_INSTANTIATE(double)
AREAL_MEGA_INSTANTIATE(BFloat16)
AREAL_MEGA_INSTANTIATE(Float16)
#undef AREAL_MEGA_INSTANTIATE

}  // namespace areal_mega::AREAL_MEGA_ISA
