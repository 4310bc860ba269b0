// The policy loss of a block of tokens on one thread. Compiled once for each instruction set: see gae_kernel.cpp for
// why there are no functions of the standard library here.
#include "policy_loss.h"
#include "token_lanes.h"

namespace areal_mega::AREAL_MEGA_ISA {
namespace {

constexpr double kInfinity = __builtin_inf();

// A run of tokens on its way through the terms of the loss: each term is a loop of its own, whose options are decided
// before it and whose constants and sums fit into registers. Masked tokens come in as zeros and with weight 0: what
// they add to loss, gradients and most sums is 0 by itself.
template <typename T>
struct Run {
    const PolicyLossArguments<T>& x;
    int64_t begin, end;
    Sums<T, kPolicySums>& sums;
    // Of each token, without its weight; slope: the derivative in the log-prob.
    Vector<T> loss[kVectorsPerRun];
    Vector<T> slope[kVectorsPerRun];

    Run(const PolicyLossArguments<T>& x, int64_t begin, int64_t end, Sums<T, kPolicySums>& sums)
        : x(x), begin(begin), end(end), sums(sums) {}

    template <typename Body>
    void over_tokens(const Body& body) const {
        over_vectors<T>(x.loss_mask, begin, end, body);
    }
};

// The first term. shared: the log-ratio is the sequence's.
template <typename T, Objective objective, bool dual, bool shared>
void ratio_term(Run<T>& run) {
    constexpr T limit = kMaxLogRatio;
    const PolicyLossArguments<T>& x = run.x;
    const T low = static_cast<T>(1 - x.options.clip_low), high = static_cast<T>(1 + x.options.clip_high);
    const T dual_clip = static_cast<T>(x.options.dual_clip);
    Vector<T> ratios = {}, excesses = {}, advantages = {}, clips = {}, dual_clips = {};
    run.over_tokens([&](const auto& tokens, int i) {
        const Vector<T> advantage = tokens.of(x.advantages), zero = {};
        const Vector<T> logprob = shared && objective == kClip ? zero : tokens.of(x.logprobs);
        const Vector<T> log_ratio = shared ? tokens.of(x.shared_log_ratio) : logprob - tokens.of(x.proximal_logprobs);
        const Exponential<T> e = exponential<T>(clamp<T>(log_ratio, -limit, limit));
        const Vector<T> bounded = clamp<T>(e.power, low, high);
        ratios += tokens.valid() ? e.power : zero;
        excesses += e.excess;
        advantages += advantage;
        if constexpr (objective == kCispo) {
            count<T>(clips, bounded != e.power);
            run.slope[i] = -bounded * advantage;
            run.loss[i] = run.slope[i] * logprob;
        } else {
            const Vector<T> cost = -advantage, unclipped = e.power * cost, at_limit = bounded * cost;
            const Mask<T> clipped = at_limit > unclipped;
            Vector<T> loss = larger<T>(at_limit, unclipped), slope = clipped ? zero : unclipped;
            count<T>(clips, clipped);
            if constexpr (dual) {
                const Vector<T> bound = dual_clip * absolute<T>(advantage);
                const Mask<T> dual_clipped = (advantage < 0) & (loss > bound);
                loss = dual_clipped ? bound : loss;
                slope = dual_clipped ? zero : slope;
                count<T>(dual_clips, dual_clipped);
            }
            run.loss[i] = loss;
            run.slope[i] = absolute<T>(log_ratio) > limit ? zero : slope;
        }
    });
    run.sums.add(kRatio, ratios);
    run.sums.add(kApproxKl, excesses);
    run.sums.add(kAdvantage, advantages);
    run.sums.add(kClipped, clips);
    if constexpr (dual) run.sums.add(kDualClipped, dual_clips);
}

template <typename T, bool shared>
void ratio_term(Run<T>& run) {
    if (run.x.options.objective == kCispo) {
        ratio_term<T, kCispo, false, shared>(run);
    } else if (run.x.options.dual_clip < kInfinity) {
        ratio_term<T, kClip, true, shared>(run);
    } else {
        ratio_term<T, kClip, false, shared>(run);
    }
}

template <typename T, BehaviorMode mode>
void behavior_term(Run<T>& run) {
    constexpr T limit = kMaxLogRatio;
    const PolicyLossArguments<T>& x = run.x;
    const T low = static_cast<T>(x.options.behavior_low), high = static_cast<T>(x.options.behavior_high);
    Vector<T> weights = {}, caps = {};
    run.over_tokens([&](const auto& tokens, int i) {
        const Vector<T> log_weight = x.shared_log_behavior
                                         ? tokens.of(x.shared_log_behavior)
                                         : tokens.of(x.proximal_logprobs) - tokens.of(x.behavior_logprobs);
        const Vector<T> zero = {}, one = zero + 1;
        Vector<T> weight = exponential<T>(clamp<T>(log_weight, -limit, limit)).power;
        Mask<T> capped;
        if constexpr (mode == kTruncate) {
            capped = weight > high;
            weight = smaller<T>(zero + high, weight);
        } else {
            capped = ~((weight >= low) & (weight <= high));
            weight = capped ? zero : (mode == kMask ? weight : one);
        }
        count<T>(caps, capped & tokens.valid());
        weights += tokens.valid() ? weight : zero;
        run.loss[i] *= weight;
        run.slope[i] *= weight;
    });
    run.sums.add(kBehaviorWeight, weights);
    run.sums.add(kBehaviorCapped, caps);
}

// The weight to the behavior policy, a constant, if there is one.
template <typename T>
void behavior_term(Run<T>& run) {
    const PolicyLossArguments<T>& x = run.x;
    if (x.behavior_logprobs) {
        Vector<T> mismatches = {};
        run.over_tokens([&](const auto& tokens, int) {
            mismatches += absolute<T>(tokens.of(x.proximal_logprobs) - tokens.of(x.behavior_logprobs));
        });
        run.sums.add(kMismatch, mismatches);
    }
    if (x.options.behavior == kNoBehavior) {
        Vector<T> weights = {};
        run.over_tokens([&](const auto& tokens, int) { count<T>(weights, tokens.valid()); });
        run.sums.add(kBehaviorWeight, weights);
    } else if (x.options.behavior_mode == kTruncate) {
        behavior_term<T, kTruncate>(run);
    } else if (x.options.behavior_mode == kMask) {
        behavior_term<T, kMask>(run);
    } else {
        behavior_term<T, kReject>(run);
    }
}

// What goes through a shared log-ratio takes its place, to be shared again, and leaves the slope.
template <typename T>
void hand_over(Run<T>& run) {
    const bool constant = run.x.options.objective == kCispo;
    run.over_tokens([&](const auto& tokens, int i) {
        const Vector<T> zero = {};
        tokens.put(run.x.shared_log_ratio, constant ? zero : tokens.of(run.x.loss_weight) * run.slope[i]);
        run.slope[i] = constant ? run.slope[i] : zero;
    });
}

// Of y = reference - logprob, whose slope in the log-prob is -1.
template <typename T, KlEstimator estimator>
void kl_term(Run<T>& run) {
    constexpr T limit = kMaxLogRatio;
    const T coefficient = static_cast<T>(run.x.options.kl_coef);
    Vector<T> kls = {};
    run.over_tokens([&](const auto& tokens, int i) {
        const Vector<T> log_ratio = tokens.of(run.x.reference_logprobs) - tokens.of(run.x.logprobs), zero = {};
        const Vector<T> y = clamp<T>(log_ratio, -limit, limit);
        Vector<T> kl = -y, down = zero - 1;
        if constexpr (estimator == kK2) {
            kl = static_cast<T>(0.5) * y * y;
            down = y;
        } else if constexpr (estimator == kK3) {
            const Exponential<T> e = exponential<T>(y);
            kl = e.excess;
            down = e.minus_one;
        }
        kls += kl;
        run.loss[i] += coefficient * kl;
        run.slope[i] -= coefficient * (absolute<T>(log_ratio) > limit ? zero : down);
    });
    run.sums.add(kKl, kls);
}

template <typename T>
void kl_term(Run<T>& run) {
    if (!run.x.reference_logprobs) return;
    if (run.x.options.kl_estimator == kK1) {
        kl_term<T, kK1>(run);
    } else if (run.x.options.kl_estimator == kK2) {
        kl_term<T, kK2>(run);
    } else {
        kl_term<T, kK3>(run);
    }
}

// The last term, and the weights of the tokens.
template <typename T>
void entropy_term(Run<T>& run) {
    const PolicyLossArguments<T>& x = run.x;
    const T coefficient = static_cast<T>(x.options.entropy_coef);
    Vector<T> losses = {}, entropies = {}, valid = {};
    run.over_tokens([&](const auto& tokens, int i) {
        const Vector<T> entropy = tokens.of(x.entropy), weight = tokens.of(x.loss_weight);
        count<T>(valid, tokens.valid());
        entropies += entropy;
        losses += weight * (run.loss[i] - coefficient * entropy);
        tokens.put(x.grad_logprobs, weight * run.slope[i]);
        if (x.grad_entropy) tokens.put(x.grad_entropy, -coefficient * weight);
    });
    run.sums.add(kPolicyLoss, losses);
    run.sums.add(kEntropy, entropies);
    run.sums.add(kTokens, valid);
}

template <typename T>
bool any_valid(const Run<T>& run) {
    const bool* mask = run.x.loss_mask;
    int64_t t = run.begin;
    for (; t + 8 <= run.end; t += 8) {
        uint64_t eight;
        __builtin_memcpy(&eight, mask + t, sizeof eight);
        if (eight) return true;
    }
    for (; t < run.end; ++t) {
        if (mask[t]) return true;
    }
    return false;
}

template <typename T>
void put_zeros(const Run<T>& run) {
    T* const all[] = {run.x.grad_logprobs, run.x.grad_entropy, run.x.shared_log_ratio};
    for (T* gradient : all) {
        if (gradient) __builtin_memset(gradient + run.begin, 0, (run.end - run.begin) * sizeof(T));
    }
}

}  // namespace

template <typename T>
void policy_loss(const PolicyLossArguments<T>& x, int64_t begin, int64_t end, double* sums) {
    Sums<T, kPolicySums> block;
    over_runs<T>(begin, end, [&](int64_t first, int64_t last) {
        Run<T> run(x, first, last, block);
        if (!any_valid(run)) {
            put_zeros(run);
            return;
        }
        if (x.shared_log_ratio) {
            ratio_term<T, true>(run);
        } else {
            ratio_term<T, false>(run);
        }
        behavior_term(run);
        if (x.shared_log_ratio) hand_over(run);
        kl_term(run);
        entropy_term(run);
    });
    for (int i = 0; i < kPolicySums; ++i) sums[i] = block[i];
}

template <typename T>
void share_over_sequences(const SharedOverSequences<T>& x, int64_t first, int64_t last) {
    for (int64_t sequence = first; sequence < last; ++sequence) {
        const int64_t begin = x.cu_seqlens[sequence], end = x.cu_seqlens[sequence + 1];
        Sums<T, 2> sums;
        over_runs<T>(begin, end, [&](int64_t run_begin, int64_t run_end) {
            Vector<T> differences = {}, valid = {};
            over_vectors<T>(x.loss_mask, run_begin, run_end, [&](const auto& tokens, int) {
                differences += tokens.of(x.from) - tokens.of(x.minus);
                count<T>(valid, tokens.valid());
            });
            sums.add(0, differences);
            sums.add(1, valid);
        });
        const double total = sums[0], valid = sums[1];
        const Vector<T> shared = Vector<T>{} + static_cast<T>(x.mean && valid ? total / valid : total);
        over_vectors<T>(x.loss_mask, begin, end, [&](const auto& tokens, int) {
            const Vector<T> own = tokens.valid() ? shared : Vector<T>{};
            tokens.put(x.to, x.add ? tokens.of(x.to) + own : own);
        });
    }
}

template void policy_loss(const PolicyLossArguments<float>&, int64_t, int64_t, double*);
template void policy_loss(const PolicyLossArguments<double>&, int64_t, int64_t, double*);
template void share_over_sequences(const SharedOverSequences<float>&, int64_t, int64_t);
template void share_over_sequences(const SharedOverSequences<double>&, int64_t, int64_t);

}  // namespace areal_mega::AREAL_MEGA_ISA
