// The policy loss of a block of tokens on one thread. Compiled once for each instruction set: see gae_kernel.cpp for
// why there are no functions of the standard library here.
#include "policy_loss.h"
#include "token_lanes.h"

namespace areal_mega::AREAL_MEGA_ISA {
namespace {

constexpr double kInfinity = __builtin_inf();

// Per token: the loss, and its slopes through the log of the ratio and directly in the log-prob.
template <typename T>
struct PolicyTerm {
    Vector<T> loss;
    Vector<T> ratio_slope;
    Vector<T> slope;
};

template <typename T>
PolicyTerm<T> policy_term(const PolicyLossOptions& options, Vector<T> logprob, Vector<T> log_ratio, Vector<T> advantage,
                          Mask<T> valid, Vector<T>* sums) {
    constexpr T limit = kMaxLogRatio;
    const Exponential<T> e = exponential<T>(clamp<T>(log_ratio, -limit, limit));
    const T low = static_cast<T>(1 - options.clip_low), high = static_cast<T>(1 + options.clip_high);
    const Vector<T> bounded = clamp<T>(e.power, low, high), zero = {};
    sums[kRatio] += valid ? e.power : zero;
    sums[kApproxKl] += e.excess;
    if (options.objective == kCispo) {
        const Vector<T> slope = -bounded * advantage;
        sums[kClipped] += indicator<T>(bounded != e.power);
        return {slope * logprob, zero, slope};
    }
    const Vector<T> unclipped = -e.power * advantage, at_limit = -bounded * advantage;
    const Mask<T> clipped = at_limit > unclipped;
    Vector<T> loss = clipped ? at_limit : unclipped;
    Mask<T> flat = clipped | (absolute<T>(log_ratio) > limit);
    sums[kClipped] += indicator<T>(clipped);
    if (options.dual_clip < kInfinity) {
        const Vector<T> bound = static_cast<T>(options.dual_clip) * absolute<T>(advantage);
        const Mask<T> dual_clipped = (advantage < 0) & (loss > bound);
        loss = dual_clipped ? bound : loss;
        flat |= dual_clipped;
        sums[kDualClipped] += indicator<T>(dual_clipped);
    }
    return {loss, flat ? zero : unclipped, zero};
}

template <typename T>
Vector<T> behavior_weight(const PolicyLossOptions& options, Vector<T> log_weight, Mask<T> valid, Vector<T>* sums) {
    constexpr T limit = kMaxLogRatio;
    const T low = static_cast<T>(options.behavior_low), high = static_cast<T>(options.behavior_high);
    const Vector<T> zero = {}, one = zero + 1;
    Vector<T> weight = exponential<T>(clamp<T>(log_weight, -limit, limit)).power;
    if (options.behavior_mode == kTruncate) {
        const Mask<T> above = weight > high;
        sums[kBehaviorCapped] += indicator<T>(above & valid);
        weight = above ? zero + high : weight;
    } else {
        const Mask<T> inside = (weight >= low) & (weight <= high);
        sums[kBehaviorCapped] += indicator<T>(~inside & valid);
        weight = inside ? (options.behavior_mode == kMask ? weight : one) : zero;
    }
    return weight;
}

// Adds the KL estimate to its sum and to the loss, and returns its slope in the log-prob.
template <typename T>
Vector<T> kl_term(const PolicyLossOptions& options, Vector<T> log_ratio, Vector<T>& loss, Vector<T>* sums) {
    constexpr T limit = kMaxLogRatio;
    const Vector<T> x = clamp<T>(log_ratio, -limit, limit), zero = {};
    Vector<T> kl = x, slope = zero + 1;
    if (options.kl_estimator == kK2) {
        kl = static_cast<T>(0.5) * x * x;
        slope = x;
    } else if (options.kl_estimator == kK3) {
        const Exponential<T> e = exponential<T>(-x);
        kl = e.excess;
        slope = -e.minus_one;
    }
    const T coefficient = static_cast<T>(options.kl_coef);
    sums[kKl] += kl;
    loss += coefficient * kl;
    return coefficient * (absolute<T>(log_ratio) > limit ? zero : slope);
}

// Masked tokens come in as zeros and with weight 0: what they add to loss, gradients and most sums is 0 by itself.
template <typename T>
void add_tokens(const PolicyLossArguments<T>& x, const Tokens<T>& tokens, Vector<T>* sums) {
    const PolicyLossOptions& options = x.options;
    const Vector<T> zero = {};
    if (!tokens.any()) {
        tokens.put(x.grad_logprobs, zero);
        if (x.grad_entropy) tokens.put(x.grad_entropy, zero);
        if (x.shared_log_ratio) tokens.put(x.shared_log_ratio, zero);
        return;
    }
    const Mask<T> valid = tokens.valid();
    const Vector<T> logprob = tokens.of(x.logprobs), proximal = tokens.of(x.proximal_logprobs);
    const Vector<T> advantage = tokens.of(x.advantages), weight = tokens.of(x.loss_weight);
    const Vector<T> log_ratio = x.shared_log_ratio ? tokens.of(x.shared_log_ratio) : logprob - proximal;
    PolicyTerm<T> term = policy_term<T>(options, logprob, log_ratio, advantage, valid, sums);
    sums[kTokens] += indicator<T>(valid);
    sums[kAdvantage] += advantage;

    Vector<T> behavior = zero + 1;
    if (x.behavior_logprobs) {
        const Vector<T> mismatch = proximal - tokens.of(x.behavior_logprobs);
        sums[kMismatch] += absolute<T>(mismatch);
        if (options.behavior != kNoBehavior) {
            const Vector<T> log_weight = x.shared_log_behavior ? tokens.of(x.shared_log_behavior) : mismatch;
            behavior = behavior_weight<T>(options, log_weight, valid, sums);
        }
    }
    sums[kBehaviorWeight] += valid ? behavior : zero;

    Vector<T> loss = behavior * term.loss, slope = behavior * term.slope;
    if (x.reference_logprobs) slope += kl_term<T>(options, logprob - tokens.of(x.reference_logprobs), loss, sums);
    if (x.entropy) {
        const Vector<T> entropy = tokens.of(x.entropy);
        sums[kEntropy] += entropy;
        loss -= static_cast<T>(options.entropy_coef) * entropy;
    }
    sums[kPolicyLoss] += weight * loss;

    const Vector<T> through_ratio = weight * behavior * term.ratio_slope;
    if (x.shared_log_ratio) {
        tokens.put(x.shared_log_ratio, through_ratio);
        tokens.put(x.grad_logprobs, weight * slope);
    } else {
        tokens.put(x.grad_logprobs, through_ratio + weight * slope);
    }
    if (x.grad_entropy) tokens.put(x.grad_entropy, -static_cast<T>(options.entropy_coef) * weight);
}

}  // namespace

template <typename T>
void policy_loss(const PolicyLossArguments<T>& x, int64_t begin, int64_t end, double* sums) {
    Sums<T, kPolicySums> block;
    block.over(x.loss_mask, begin, end,
               [&](const Tokens<T>& tokens, Vector<T>* recent) { add_tokens(x, tokens, recent); });
    for (int i = 0; i < kPolicySums; ++i) sums[i] = block[i];
}

template <typename T>
void share_over_sequences(const SharedOverSequences<T>& x, int64_t first, int64_t last) {
    for (int64_t sequence = first; sequence < last; ++sequence) {
        const int64_t begin = x.cu_seqlens[sequence], end = x.cu_seqlens[sequence + 1];
        Sums<T, 2> sums;
        sums.over(x.loss_mask, begin, end, [&](const Tokens<T>& tokens, Vector<T>* recent) {
            recent[0] += tokens.of(x.from) - tokens.of(x.minus);
            recent[1] += indicator<T>(tokens.valid());
        });
        const double total = sums[0], count = sums[1];
        const Vector<T> shared = Vector<T>{} + static_cast<T>(x.mean && count ? total / count : total);
        for (int64_t t = begin; t < end; t += kLanes<T>) {
            const Tokens<T> tokens(x.loss_mask, t, end);
            const Vector<T> zero = {}, own = tokens.valid() ? shared : zero;
            tokens.put(x.to, x.add ? tokens.of(x.to) + own : own);
        }
    }
}

template void policy_loss(const PolicyLossArguments<float>&, int64_t, int64_t, double*);
template void policy_loss(const PolicyLossArguments<double>&, int64_t, int64_t, double*);
template void share_over_sequences(const SharedOverSequences<float>&, int64_t, int64_t);
template void share_over_sequences(const SharedOverSequences<double>&, int64_t, int64_t);

}  // namespace areal_mega::AREAL_MEGA_ISA
