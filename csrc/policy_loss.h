// The policy loss of packed tokens; areal_mega/ops/policy_loss.py has the formulas.
#pragma once

#include <cstdint>

namespace areal_mega {

// PolicyLossOptions.numbers() of areal_mega/ops/policy_loss_options.py: choices by position, absent limits infinite.
struct PolicyLossOptions {
    double objective;
    double clip_low;
    double clip_high;
    double dual_clip;
    double ratio;
    double behavior;
    double behavior_mode;
    double behavior_low;
    double behavior_high;
    double kl_coef;
    double kl_estimator;
    double entropy_coef;
};

enum Objective { kClip, kCispo };
enum RatioLevel { kTokenRatio, kSequenceRatio };
enum BehaviorLevel { kNoBehavior, kTokenBehavior, kSequenceBehavior, kSequenceMeanBehavior };
enum BehaviorMode { kTruncate, kMask, kReject };
enum KlEstimator { kK1, kK2, kK3 };

constexpr double kMaxLogRatio = 20;

// What is summed over tokens: the loss, and POLICY_STATISTICS in their order.
enum PolicySum {
    kPolicyLoss,
    kTokens,
    kRatio,
    kApproxKl,
    kClipped,
    kDualClipped,
    kEntropy,
    kKl,
    kBehaviorWeight,
    kBehaviorCapped,
    kMismatch,
    kAdvantage,
    kPolicySums
};

// All pointers are contiguous host memory; T is float or double. [N] unless said otherwise.
template <typename T>
struct PolicyLossArguments {
    const T* logprobs;
    const T* entropy;  // or null
    const T* advantages;
    const T* proximal_logprobs;
    const bool* loss_mask;
    const T* loss_weight;
    const T* behavior_logprobs;   // or null
    const T* reference_logprobs;  // or null
    const int32_t* cu_seqlens;    // [B + 1], or null
    T* shared_log_ratio;          // workspace where the ratio is the sequence's, otherwise null
    T* shared_log_behavior;       // workspace where the behavior weight is the sequence's, otherwise null
    T* loss;                      // []
    double* statistics;           // [kPolicySums - 1]
    T* grad_logprobs;
    T* grad_entropy;  // or null
    int64_t tokens;
    int64_t sequences;
    PolicyLossOptions options;
};

}  // namespace areal_mega
