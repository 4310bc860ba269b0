// GAE of a stretch of tokens on one thread. Compiled once for each instruction set, so no functions of the standard
// library here: the linker keeps one copy of an inline function, perhaps the one compiled for a newer CPU.
#include "gae.h"
#include "lanes.h"

namespace areal_mega::AREAL_MEGA_ISA {
namespace {

// What a token needs from the next valid token of its sequence; one advantage for each lambda.
template <typename T, int kLambdas>
struct Carry {
    T value;
    T advantages[kLambdas];
};

// c = gamma lambda for each lambda of a sequence.
template <typename T, int kLambdas>
struct Decay {
    T c[kLambdas];
    Vector<T> powers[kLambdas];  // lane i: c^(kLanes - i), the weight of what follows the vector
};

// The product of c over the lanes from i to the last. Each round doubles the factors that a lane has.
template <typename T, int factors = 1>
Vector<T> suffix_products(Vector<T> c) {
    if constexpr (factors < kLanes<T>) {
        return suffix_products<T, 2 * factors>(c * shift<T, factors>(c, Vector<T>{} + 1));
    } else {
        return c;
    }
}

template <typename T, int kLambdas>
Decay<T, kLambdas> decay_of(const GaeArguments<T>& x, int64_t sequence) {
    Decay<T, kLambdas> decay;
    decay.c[kLambdas - 1] = x.gamma * x.critic_lam;
    decay.c[0] = x.gamma * (x.lams ? x.lams[sequence] : x.lam);
    for (int i = 0; i < kLambdas; ++i) decay.powers[i] = suffix_products<T>(Vector<T>{} + decay.c[i]);
    return decay;
}

// A run of valid tokens by the definition: delta = r + gamma V' - V, A = delta + gamma lambda A'.
template <bool write, typename T, int kLambdas>
void scan_serially(const GaeArguments<T>& x, const Decay<T, kLambdas>& decay, int64_t begin, int64_t end,
                   Carry<T, kLambdas>& carry) {
    for (int64_t t = end - 1; t >= begin; --t) {
        const T delta = x.rewards[t] + x.gamma * carry.value - x.values[t];
        carry.value = x.values[t];
        for (int i = 0; i < kLambdas; ++i) carry.advantages[i] = delta + decay.c[i] * carry.advantages[i];
        if constexpr (write) {
            x.advantages[t] = carry.advantages[0];
            x.returns[t] = carry.advantages[kLambdas - 1] + carry.value;
        }
    }
}

// sum_j c^j x[i + j] over the lanes from i to the last. Each round doubles the terms that a lane has.
template <typename T, int terms = 1>
Vector<T> discounted_suffix_sums(Vector<T> x, T c) {
    if constexpr (terms < kLanes<T>) {
        return discounted_suffix_sums<T, 2 * terms>(x + c * shift<T, terms>(x, Vector<T>{}), c * c);
    } else {
        return x;
    }
}

// A run of valid tokens, a vector of tokens at a time. A = delta + c A' is linear, so a vector's own deltas are
// summed without waiting for what follows, which is added at the end. Nothing flows from a token to a later one:
// a NaN spreads as it does in the definition.
template <bool write, typename T, int kLambdas>
void scan(const GaeArguments<T>& x, const Decay<T, kLambdas>& decay, int64_t begin, int64_t end,
          Carry<T, kLambdas>& carry) {
    const int64_t aligned_end = end - (end - begin) % kLanes<T>;
    scan_serially<write>(x, decay, aligned_end, end, carry);
    // All in registers: through memory the next vector's deltas would wait for this one's advantages.
    const GaeArguments<T> own = x;
    const Decay<T, kLambdas> own_decay = decay;
    Vector<T> following = Vector<T>{} + carry.value, following_advantages[kLambdas];
    for (int i = 0; i < kLambdas; ++i) following_advantages[i] = Vector<T>{} + carry.advantages[i];
    for (int64_t t = aligned_end - kLanes<T>; t >= begin; t -= kLanes<T>) {
        const Vector<T> values = load(own.values + t);
        const Vector<T> next_values = shift<T, 1>(values, following);
        const Vector<T> deltas = load(own.rewards + t) + own.gamma * next_values - values;
        Vector<T> advantages[kLambdas];
        for (int i = 0; i < kLambdas; ++i) {
            const Vector<T> sums = discounted_suffix_sums(deltas, own_decay.c[i]);
            advantages[i] = sums + own_decay.powers[i] * following_advantages[i];
            following_advantages[i] = Vector<T>{} + advantages[i][0];
        }
        following = values;
        if constexpr (write) {
            store(own.advantages + t, advantages[0]);
            store(own.returns + t, advantages[kLambdas - 1] + values);
        }
    }
    if (aligned_end - begin < kLanes<T>) return;
    carry.value = following[0];
    for (int i = 0; i < kLambdas; ++i) carry.advantages[i] = following_advantages[i][0];
}

// Where the run of equal bytes that ends before `end` begins; all that are not 0 are equal.
int64_t run_begin(const uint8_t* mask, int64_t begin, int64_t end) {
    const bool valid = mask[end - 1];
    const uint64_t eight = valid ? 0x0101010101010101 : 0;
    for (; end - begin >= 8 && __builtin_memcmp(mask + end - 8, &eight, 8) == 0; end -= 8) {
    }
    while (end > begin && (mask[end - 1] != 0) == valid) --end;
    return end;
}

// A stretch of one sequence: masked tokens get zeros, and the carry passes over them. Returns the number of the others.
template <bool write, typename T, int kLambdas>
int64_t scan_valid(const GaeArguments<T>& x, const Decay<T, kLambdas>& decay, int64_t begin, int64_t end,
                   Carry<T, kLambdas>& carry) {
    if (!x.loss_mask) {
        scan<write>(x, decay, begin, end, carry);
        return end - begin;
    }
    const auto* mask = reinterpret_cast<const uint8_t*>(x.loss_mask);
    int64_t valid = 0;
    for (int64_t run = end; end > begin; end = run) {
        run = run_begin(mask, begin, end);
        if (mask[end - 1]) {
            scan<write>(x, decay, run, end, carry);
            valid += end - run;
        } else if constexpr (write) {
            for (int64_t t = run; t < end; ++t) x.advantages[t] = x.returns[t] = 0;
        }
    }
    return valid;
}

// In double: each squaring doubles the relative error.
double power(double base, int64_t exponent) {
    double result = 1;
    for (; exponent; exponent >>= 1, base *= base) {
        if (exponent & 1) result *= base;
    }
    return result;
}

template <typename T, int kLambdas>
void sequences(const GaeArguments<T>& x, int64_t first, int64_t last) {
    Decay<T, kLambdas> decay = decay_of<T, kLambdas>(x, first);
    for (int64_t sequence = first; sequence < last; ++sequence) {
        if (x.lams) decay = decay_of<T, kLambdas>(x, sequence);
        Carry<T, kLambdas> carry = {x.bootstrap ? x.bootstrap[sequence] : 0, {}};
        scan_valid<true>(x, decay, x.cu_seqlens[sequence], x.cu_seqlens[sequence + 1], carry);
    }
}

template <typename T, int kLambdas>
GaeElement<T, kLambdas> summary(const GaeArguments<T>& x, int64_t sequence, int64_t begin, int64_t end) {
    const Decay<T, kLambdas> decay = decay_of<T, kLambdas>(x, sequence);
    Carry<T, kLambdas> carry = {};
    const int64_t valid = scan_valid<false>(x, decay, begin, end, carry);
    if (!valid) return gae_identity<T, kLambdas>();
    GaeElement<T, kLambdas> all;
    all.kind = GaeKind::open;
    all.value = carry.value;
    for (int i = 0; i < kLambdas; ++i) {
        const double weight = power(decay.c[i], valid - 1);
        all.sums[i] = {carry.advantages[i], static_cast<T>(decay.c[i] * weight), static_cast<T>(x.gamma * weight)};
    }
    return all;
}

template <typename T, int kLambdas>
void stretch(const GaeArguments<T>& x, int64_t sequence, int64_t begin, int64_t end,
             const GaeElement<T, kLambdas>& after) {
    Carry<T, kLambdas> carry;
    carry.value = after.value;
    for (int i = 0; i < kLambdas; ++i) carry.advantages[i] = after.sums[i].advantage;
    scan_valid<true>(x, decay_of<T, kLambdas>(x, sequence), begin, end, carry);
}

}  // namespace

template <typename T, int kLambdas>
GaeKernels<T, kLambdas> gae_kernels() {
    return {sequences<T, kLambdas>, summary<T, kLambdas>, stretch<T, kLambdas>};
}

template GaeKernels<float, 1> gae_kernels();
template GaeKernels<float, 2> gae_kernels();
template GaeKernels<double, 1> gae_kernels();
template GaeKernels<double, 2> gae_kernels();

}  // namespace areal_mega::AREAL_MEGA_ISA
