#include "value_loss.h"

#include "token_blocks.h"

namespace areal_mega {
namespace {

template <typename T>
using Kernel = void (*)(const ValueLossArguments<T>&, int64_t, int64_t, double*);

template <typename T>
Kernel<T> kernel_for(Isa isa) {
#define AREAL_MEGA_SELECT(name) \
    if (isa == Isa::name) return name::value_loss<T>;
    AREAL_MEGA_FOR_EACH_ISA(AREAL_MEGA_SELECT)
#undef AREAL_MEGA_SELECT
    return nullptr;
}

}  // namespace

template <typename T>
void value_loss(const ValueLossArguments<T>& x, int threads, Isa isa) {
    const Kernel<T> kernel = kernel_for<T>(isa);
    const auto block = [&](int64_t begin, int64_t end, double* sums) { kernel(x, begin, end, sums); };
    const std::vector<double> sums = sum_over_blocks(x.tokens, kValueSums, threads, block);
    *x.loss = static_cast<T>(sums[kValueLoss]);
    std::copy(sums.begin() + 1, sums.end(), x.statistics);
}

template void value_loss(const ValueLossArguments<float>&, int, Isa);
template void value_loss(const ValueLossArguments<double>&, int, Isa);

}  // namespace areal_mega
