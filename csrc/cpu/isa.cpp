#include "isa.h"

#include <stdexcept>
#include <utility>

namespace areal_mega {
namespace {

bool runs_here(Isa isa) {
    switch (isa) {
        case Isa::scalar:
            return true;
#if defined(__x86_64__)
        case Isa::avx2:
            return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
        case Isa::avx512:
            return runs_here(Isa::avx2) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                   __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq");
#endif
    }
    return false;
}

std::vector<std::pair<std::string, Isa>> find_available() {
    std::vector<std::pair<std::string, Isa>> found;
#define AREAL_MEGA_ADD(isa) \
    if (runs_here(Isa::isa)) found.emplace_back(#isa, Isa::isa);
    AREAL_MEGA_FOR_EACH_ISA(AREAL_MEGA_ADD)
#undef AREAL_MEGA_ADD
    return found;
}

const std::vector<std::pair<std::string, Isa>>& available() {
    static const auto found = find_available();
    return found;
}

}  // namespace

std::vector<std::string> available_isas() {
    std::vector<std::string> names;
    for (const auto& entry : available()) names.push_back(entry.first);
    return names;
}

Isa choose_isa(const std::string& name) {
    if (name.empty()) return available().back().second;
    std::string names;
    for (const auto& entry : available()) {
        if (entry.first == name) return entry.second;
        names += " " + entry.first;
    }
    throw std::invalid_argument("instruction set '" + name + "' is not available; this CPU runs:" + names);
}

}  // namespace areal_mega
