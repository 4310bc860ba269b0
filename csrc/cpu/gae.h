// Packed GAE on the CPU.
#pragma once

#include "../gae.h"
#include "../gae_scan.h"
#include "isa.h"

namespace areal_mega {

// What one instruction set can do, on the calling thread. A stretch is a part [begin, end) of one sequence.
template <typename T, int kLambdas>
struct GaeKernels {
    using Element = GaeElement<T, kLambdas>;

    // Writes the results of the whole sequences [first, last).
    void (*sequences)(const GaeArguments<T>& arguments, int64_t first, int64_t last);
    // What the tokens of a stretch do to what comes in from its right; writes nothing.
    Element (*summary)(const GaeArguments<T>& arguments, int64_t sequence, int64_t begin, int64_t end);
    // Writes the results of a stretch; `after` is all that stands to its right in the sequence, with its end.
    void (*stretch)(const GaeArguments<T>& arguments, int64_t sequence, int64_t begin, int64_t end,
                    const Element& after);
};

#define AREAL_MEGA_DECLARE(isa)            \
    namespace isa {                        \
    template <typename T, int kLambdas>    \
    GaeKernels<T, kLambdas> gae_kernels(); \
    }
AREAL_MEGA_FOR_EACH_ISA(AREAL_MEGA_DECLARE)
#undef AREAL_MEGA_DECLARE

// All sequences, on at most `threads` threads. The result does not depend on their number.
template <typename T>
void gae(const GaeArguments<T>& arguments, int threads, Isa isa);

}  // namespace areal_mega
