// The critic's loss of a block of tokens on one thread. Compiled once for each instruction set: see gae_kernel.cpp for
// why there are no functions of the standard library here.
#include "token_lanes.h"
#include "value_loss.h"

namespace areal_mega::AREAL_MEGA_ISA {

// Masked tokens come in as zeros and with weight 0: all that they add is 0.
template <typename T>
void value_loss(const ValueLossArguments<T>& x, int64_t begin, int64_t end, double* sums) {
    Sums<T, kValueSums> block;
    over_runs<T>(begin, end, [&](int64_t first, int64_t last) {
        Vector<T> losses = {}, valid = {}, values = {}, returns = {}, errors = {}, clips = {}, squares = {};
        over_vectors<T>(x.loss_mask, first, last, [&](const auto& tokens, int) {
            const Vector<T> value = tokens.of(x.values), old = tokens.of(x.old_values), zero = {};
            const Vector<T> target = tokens.of(x.returns), weight = tokens.of(x.loss_weight);
            const Vector<T> change = value - old, distance = value - target;
            const Vector<T> bounded = old + clamp<T>(change, -x.clip, x.clip) - target;
            const Vector<T> error = distance * distance, bounded_error = bounded * bounded;
            const Mask<T> clipped = (absolute<T>(change) > x.clip) & (bounded_error > error);
            losses += static_cast<T>(0.5) * weight * (clipped ? bounded_error : error);
            count<T>(valid, tokens.valid());
            values += value;
            returns += target;
            errors += error;
            count<T>(clips, clipped);
            squares += target * target;
            tokens.put(x.grad_values, weight * (clipped ? zero : distance));
        });
        block.add(kValueLoss, losses);
        block.add(kValueTokens, valid);
        block.add(kValue, values);
        block.add(kReturn, returns);
        block.add(kError, errors);
        block.add(kValueClipped, clips);
        block.add(kReturnSquared, squares);
    });
    for (int i = 0; i < kValueSums; ++i) sums[i] = block[i];
}

template void value_loss(const ValueLossArguments<float>&, int64_t, int64_t, double*);
template void value_loss(const ValueLossArguments<double>&, int64_t, int64_t, double*);

}  // namespace areal_mega::AREAL_MEGA_ISA
