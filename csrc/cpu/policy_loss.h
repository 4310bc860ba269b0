// The policy loss on the CPU.
#pragma once

#include "../policy_loss.h"
#include "isa.h"

namespace areal_mega {

// On each valid token the sum, or mean, of from - minus over the valid tokens of its sequence.
template <typename T>
struct SharedOverSequences {
    const T* from;
    const T* minus;  // or null: 0
    const bool* loss_mask;
    const int32_t* cu_seqlens;
    T* to;      // 0 at masked tokens
    bool mean;  // or sum
    bool add;   // to what is there; otherwise written
};

// With one instruction set and on the calling thread: tokens [begin, end), into sums [kPolicySums]; sequences
// [first, last). A shared log-ratio is replaced by the gradient that goes through it.
#define AREAL_MEGA_DECLARE(isa)                                                                          \
    namespace isa {                                                                                      \
    template <typename T>                                                                                \
    void policy_loss(const PolicyLossArguments<T>& arguments, int64_t begin, int64_t end, double* sums); \
    template <typename T>                                                                                \
    void share_over_sequences(const SharedOverSequences<T>& arguments, int64_t first, int64_t last);     \
    }
AREAL_MEGA_FOR_EACH_ISA(AREAL_MEGA_DECLARE)
#undef AREAL_MEGA_DECLARE

// All tokens, on at most `threads` threads. The result does not depend on their number.
template <typename T>
void policy_loss(const PolicyLossArguments<T>& arguments, int threads, Isa isa);

}  // namespace areal_mega
