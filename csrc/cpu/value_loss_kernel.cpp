// The critic's loss of a block of tokens on one thread. Compiled once for each instruction set: see gae_kernel.cpp for
// why there are no functions of the standard library here.
#include "token_lanes.h"
#include "value_loss.h"

namespace areal_mega::AREAL_MEGA_ISA {

// Masked tokens come in as zeros and with weight 0: all that they add is 0.
template <typename T>
void value_loss(const ValueLossArguments<T>& x, int64_t begin, int64_t end, double* sums) {
    Sums<T, kValueSums> block;
    block.over(x.loss_mask, begin, end, [&](const Tokens<T>& tokens, Vector<T>* recent) {
        const Vector<T> value = tokens.of(x.values), old = tokens.of(x.old_values), zero = {};
        const Vector<T> target = tokens.of(x.returns), weight = tokens.of(x.loss_weight);
        const Vector<T> change = value - old, distance = value - target;
        const Vector<T> bounded = old + clamp<T>(change, -x.clip, x.clip) - target;
        const Vector<T> error = distance * distance, bounded_error = bounded * bounded;
        const Mask<T> clipped = (absolute<T>(change) > x.clip) & (bounded_error > error);
        recent[kValueLoss] += static_cast<T>(0.5) * weight * (clipped ? bounded_error : error);
        recent[kValueTokens] += indicator<T>(tokens.valid());
        recent[kValue] += value;
        recent[kReturn] += target;
        recent[kError] += error;
        recent[kValueClipped] += indicator<T>(clipped);
        recent[kReturnSquared] += target * target;
        tokens.put(x.grad_values, weight * (clipped ? zero : distance));
    });
    for (int i = 0; i < kValueSums; ++i) sums[i] = block[i];
}

template void value_loss(const ValueLossArguments<float>&, int64_t, int64_t, double*);
template void value_loss(const ValueLossArguments<double>&, int64_t, int64_t, double*);

}  // namespace areal_mega::AREAL_MEGA_ISA
