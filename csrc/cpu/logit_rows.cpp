#include "logit_rows.h"

#include <algorithm>

namespace areal_mega {
namespace {

// Fewer logits than this are done sooner by one thread than a second one wakes up.
constexpr int64_t kLogitsPerThread = 16384;

// Threads take about this many logits at a time, and at least so many times each: they end together.
constexpr int64_t kLogitsAtATime = int64_t{1} << 20;
constexpr int64_t kSharesPerThread = 8;

template <typename Arguments>
void over_rows(void (*kernel)(const Arguments&, int64_t, int64_t), const Arguments& arguments, int threads) {
    const int64_t width = std::max<int64_t>(arguments.columns, 1);
    const int64_t rows = arguments.rows;
    threads = static_cast<int>(std::clamp<int64_t>(rows * width / kLogitsPerThread, 1, threads));
    const int64_t step = std::clamp<int64_t>(kLogitsAtATime / width, 1, rows / (kSharesPerThread * threads) + 1);
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t first = 0; first < rows; first += step) kernel(arguments, first, std::min(first + step, rows));
}

}  // namespace

template <typename T>
void logit_statistics(const LogitStatisticsArguments<T>& arguments, int threads, Isa isa) {
#define AREAL_MEGA_RUN(name) \
    if (isa == Isa::name) over_rows(name::logit_statistics<T>, arguments, threads);
    AREAL_MEGA_FOR_EACH_ISA(AREAL_MEGA_RUN)
#undef AREAL_MEGA_RUN
}

template <typename T>
void logit_gradient(const LogitGradientArguments<T>& arguments, int threads, Isa isa) {
#define AREAL_MEGA_RUN(name) \
    if (isa == Isa::name) over_rows(name::logit_gradient<T>, arguments, threads);
    AREAL_MEGA_FOR_EACH_ISA(AREAL_MEGA_RUN)
#undef AREAL_MEGA_RUN
}

#define AREAL_MEGA_INSTANTIATE(T)                                                 \
    template void logit_statistics(const LogitStatisticsArguments<T>&, int, Isa); \
    template void logit_gradient(const LogitGradientArguments<T>&, int, Isa);
AREAL_MEGA_INSTANTIATE(float)
AREAL_MEGA_INSTANTIATE(double)
AREAL_MEGA_INSTANTIATE(BFloat16)
AREAL_MEGA_INSTANTIATE(Float16)
#undef AREAL_MEGA_INSTANTIATE

}  // namespace areal_mega
