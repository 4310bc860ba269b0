// Packed GAE as a scan: what a stretch of tokens does to the numbers that come from its right, and how the stretches of
// two neighbours make one. The same functions serve the blocks of the CPU and the threads of a GPU.
//
// From right to left a token takes over, from the next valid token of its sequence, that token's value V' and advantage
// A', and hands on its own: A = r + gamma V' - V + c A' with c = gamma lambda. So a stretch of k valid tokens makes of
// what comes in
//
//     A = advantage + decay A' + next_value_weight V',    decay = c^k, next_value_weight = gamma c^(k-1),
//
// and hands on the value of its first valid token. Where a sequence ends, nothing comes in: V' is its bootstrap and A'
// is 0, whatever stands to the right. Cases are told apart by branches, never by a factor 0: 0 * NaN is NaN.
//
// Functions have internal linkage: they are compiled for several instruction sets.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define AREAL_MEGA_HOST_DEVICE __host__ __device__
#else
#define AREAL_MEGA_HOST_DEVICE
#endif

namespace areal_mega {

enum class GaeKind : int32_t {
    identity,  // no valid token and no end of a sequence: what comes in is handed on
    open,      // valid tokens that need what comes in
    closed,    // the sequence of its first token ends within: all but `value` and `advantage` is meaningless
};

// The advantage of a stretch for one lambda.
template <typename T>
struct GaeSum {
    T advantage;
    T decay;
    T next_value_weight;
};

// A stretch of neighbouring tokens. kLambdas: 1, or 2 where the returns have a lambda of their own: sums[0] is of the
// advantages, sums[kLambdas - 1] of the returns.
template <typename T, int kLambdas>
struct GaeElement {
    GaeKind kind;
    T value;  // of the first valid token; of a bare end, the bootstrap
    GaeSum<T> sums[kLambdas];
};

// A masked token, or no token.
template <typename T, int kLambdas>
static AREAL_MEGA_HOST_DEVICE GaeElement<T, kLambdas> gae_identity() {
    return {};
}

// The end of a sequence: it stands to the right of the sequence's last token, masked or not.
template <typename T, int kLambdas>
static AREAL_MEGA_HOST_DEVICE GaeElement<T, kLambdas> gae_end(T bootstrap) {
    GaeElement<T, kLambdas> end = {};
    end.kind = GaeKind::closed;
    end.value = bootstrap;
    return end;
}

// One valid token. decays: gamma lambda for each lambda.
template <typename T, int kLambdas>
static AREAL_MEGA_HOST_DEVICE GaeElement<T, kLambdas> gae_token(T reward, T value, T gamma,
                                                                const T (&decays)[kLambdas]) {
    GaeElement<T, kLambdas> token;
    token.kind = GaeKind::open;
    token.value = value;
    for (int i = 0; i < kLambdas; ++i) token.sums[i] = {reward - value, decays[i], gamma};
    return token;
}

// The stretch `left` followed by the stretch `right`. Associative.
template <typename T, int kLambdas>
static AREAL_MEGA_HOST_DEVICE GaeElement<T, kLambdas> gae_compose(const GaeElement<T, kLambdas>& left,
                                                                  const GaeElement<T, kLambdas>& right) {
    if (left.kind == GaeKind::closed || right.kind == GaeKind::identity) return left;
    if (left.kind == GaeKind::identity) return right;
    GaeElement<T, kLambdas> both;
    both.kind = right.kind;
    both.value = left.value;
    for (int i = 0; i < kLambdas; ++i) {
        const GaeSum<T>&l = left.sums[i], &r = right.sums[i];
        both.sums[i].advantage = l.advantage + (l.next_value_weight * right.value + l.decay * r.advantage);
        both.sums[i].decay = l.decay * r.decay;
        both.sums[i].next_value_weight = l.decay * r.next_value_weight;
    }
    return both;
}

}  // namespace areal_mega
