// The instruction sets that one binary carries, and the choice between them at run time.
#pragma once

#include <string>
#include <vector>

// Every kernel source is compiled once for each of these, in the namespace of that name (see CMakeLists.txt).
#if defined(__x86_64__)
#define AREAL_MEGA_FOR_EACH_ISA(apply) apply(scalar) apply(avx2) apply(avx512)
#else
#define AREAL_MEGA_FOR_EACH_ISA(apply) apply(scalar)
#endif

namespace areal_mega {

#define AREAL_MEGA_ENUMERATE(isa) isa,
enum class Isa { AREAL_MEGA_FOR_EACH_ISA(AREAL_MEGA_ENUMERATE) };
#undef AREAL_MEGA_ENUMERATE

// Names of the instruction sets this CPU can run, slowest first.
std::vector<std::string> available_isas();

// The named instruction set, or the best one for an empty name. Throws std::invalid_argument for a name that is
// unknown or that this CPU cannot run.
Isa choose_isa(const std::string& name);

}  // namespace areal_mega
