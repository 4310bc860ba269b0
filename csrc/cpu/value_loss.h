// The critic's loss on the CPU.
#pragma once

#include "../value_loss.h"
#include "isa.h"

namespace areal_mega {

// Tokens [begin, end), with one instruction set and on the calling thread, into sums [kValueSums].
#define AREAL_MEGA_DECLARE(isa)                                                                        \
    namespace isa {                                                                                    \
    template <typename T>                                                                              \
    void value_loss(const ValueLossArguments<T>& arguments, int64_t begin, int64_t end, double* sums); \
    }
AREAL_MEGA_FOR_EACH_ISA(AREAL_MEGA_DECLARE)
#undef AREAL_MEGA_DECLARE

// All tokens, on at most `threads` threads. The result does not depend on their number.
template <typename T>
void value_loss(const ValueLossArguments<T>& arguments, int threads, Isa isa);

}  // namespace areal_mega
