// The Python module areal_mega._C. It knows nothing of torch: one binary serves every torch version.
#include "bind.h"

namespace areal_mega {

void bind_balance(py::module_& module);
void bind_gae(py::module_& module);
void bind_pieces(py::module_& module);
void bind_policy_loss(py::module_& module);
void bind_value_loss(py::module_& module);
void bind_logit_rows(py::module_& module);

#if defined(AREAL_MEGA_CUDA_ARCHS)
namespace cuda {
void bind(py::module_& parent);
}
#endif

}  // namespace areal_mega

PYBIND11_MODULE(_C, module) {
    module.doc() = "Compiled kernels of areal_mega.ops.";
    module.def("available_isas", &areal_mega::available_isas,
               "Instruction sets of the kernels that this CPU can run, slowest first.");
    areal_mega::bind_balance(module);
    areal_mega::bind_gae(module);
    areal_mega::bind_pieces(module);
    areal_mega::bind_policy_loss(module);
    areal_mega::bind_value_loss(module);
    areal_mega::bind_logit_rows(module);
#if defined(AREAL_MEGA_CUDA_ARCHS)
    areal_mega::cuda::bind(module);
#endif
}
