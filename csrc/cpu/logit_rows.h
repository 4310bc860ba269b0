// The two passes over rows of logits on the CPU.
#pragma once

#include "../logit_rows.h"
#include "isa.h"

namespace areal_mega {

// Rows [first, last), with one instruction set and on the calling thread.
#define AREAL_MEGA_DECLARE(isa)                                                                       \
    namespace isa {                                                                                   \
    template <typename T>                                                                             \
    void logit_statistics(const LogitStatisticsArguments<T>& arguments, int64_t first, int64_t last); \
    template <typename T>                                                                             \
    void logit_gradient(const LogitGradientArguments<T>& arguments, int64_t first, int64_t last);     \
    }
AREAL_MEGA_FOR_EACH_ISA(AREAL_MEGA_DECLARE)
#undef AREAL_MEGA_DECLARE

// All rows, on at most `threads` threads. A row's result depends on that row only.
template <typename T>
void logit_statistics(const LogitStatisticsArguments<T>& arguments, int threads, Isa isa);
template <typename T>
void logit_gradient(const LogitGradientArguments<T>& arguments, int threads, Isa isa);

}  // namespace areal_mega
