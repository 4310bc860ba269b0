// The submodule areal_mega._C.cuda: kernels that start on the caller's stream and current device and return at once. It
// is there if the build was told to compile them.
#include "../bind.h"

namespace areal_mega::cuda {

void bind_gae(py::module_& module);
void bind_pieces(py::module_& module);

void bind(py::module_& parent) {
    py::module_ module = parent.def_submodule("cuda", "Kernels for NVIDIA GPUs.");
    module.attr("architectures") = AREAL_MEGA_CUDA_ARCHS;  // compute capabilities without the dot: "80,90"
    bind_gae(module);
    bind_pieces(module);
}

}  // namespace areal_mega::cuda
