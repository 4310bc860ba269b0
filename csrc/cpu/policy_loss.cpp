#include "policy_loss.h"

#include "token_blocks.h"

namespace areal_mega {
namespace {

template <typename T>
struct Kernels {
    void (*tokens)(const PolicyLossArguments<T>&, int64_t, int64_t, double*);
    void (*sequences)(const SharedOverSequences<T>&, int64_t, int64_t);
};

template <typename T>
Kernels<T> kernels_for(Isa isa) {
#define AREAL_MEGA_SELECT(name) \
    if (isa == Isa::name) return {name::policy_loss<T>, name::share_over_sequences<T>};
    AREAL_MEGA_FOR_EACH_ISA(AREAL_MEGA_SELECT)
#undef AREAL_MEGA_SELECT
    return {};
}

}  // namespace

template <typename T>
void policy_loss(const PolicyLossArguments<T>& x, int threads, Isa isa) {
    const Kernels<T> kernels = kernels_for<T>(isa);
    const auto share = [&](const T* from, const T* minus, T* to, bool mean, bool add) {
        const SharedOverSequences<T> shared{from, minus, x.loss_mask, x.cu_seqlens, to, mean, add};
#pragma omp parallel for num_threads(threads_for(x.tokens, threads)) schedule(dynamic, 16)
        for (int64_t i = 0; i < x.sequences; ++i) kernels.sequences(shared, i, i + 1);
    };
    const bool behavior_mean = x.options.behavior == kSequenceMeanBehavior;
    if (x.shared_log_ratio) share(x.logprobs, x.proximal_logprobs, x.shared_log_ratio, true, false);
    if (x.shared_log_behavior) {
        share(x.proximal_logprobs, x.behavior_logprobs, x.shared_log_behavior, behavior_mean, false);
    }
    const auto block = [&](int64_t begin, int64_t end, double* sums) { kernels.tokens(x, begin, end, sums); };
    const std::vector<double> sums = sum_over_blocks(x.tokens, kPolicySums, threads, block);
    if (x.shared_log_ratio) share(x.shared_log_ratio, nullptr, x.grad_logprobs, true, true);
    *x.loss = static_cast<T>(sums[kPolicyLoss]);
    std::copy(sums.begin() + 1, sums.end(), x.statistics);
}

template void policy_loss(const PolicyLossArguments<float>&, int, Isa);
template void policy_loss(const PolicyLossArguments<double>&, int, Isa);

}  // namespace areal_mega
