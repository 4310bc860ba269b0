#include "../../cuda/gae.h"

#include "../bind.h"

namespace areal_mega::cuda {
namespace {

template <typename T>
void bind(py::module_& module, const std::string& dtype) {
    module.def(("gae_workspace_" + dtype).c_str(), &gae_workspace<T>, py::arg("tokens"), py::arg("sequences"),
               py::arg("decoupled"), "Bytes of `workspace` in a call of gae.");
    module.def(("gae_" + dtype).c_str(),
               [](uintptr_t rewards, uintptr_t values, uintptr_t cu_seqlens, uintptr_t loss_mask, uintptr_t bootstrap,
                  uintptr_t lams, uintptr_t advantages, uintptr_t returns, uintptr_t workspace, int64_t tokens,
                  int64_t sequences, double gamma, double lam, double critic_lam, bool decoupled, uintptr_t stream) {
                   const GaeArguments<T> arguments{at<const T>(rewards),
                                                   at<const T>(values),
                                                   at<const int32_t>(cu_seqlens),
                                                   at<const bool>(loss_mask),
                                                   at<const T>(bootstrap),
                                                   at<const T>(lams),
                                                   at<T>(advantages),
                                                   at<T>(returns),
                                                   sequences,
                                                   static_cast<T>(gamma),
                                                   static_cast<T>(lam),
                                                   static_cast<T>(critic_lam),
                                                   decoupled};
                   py::gil_scoped_release release;
                   gae(arguments, tokens, at<void>(workspace), at<CUstream_st>(stream));
               },
               py::arg("rewards"), py::arg("values"), py::arg("cu_seqlens"), py::arg("loss_mask"), py::arg("bootstrap"),
               py::arg("lams"), py::arg("advantages"), py::arg("returns"), py::arg("workspace"), py::arg("tokens"),
               py::arg("sequences"), py::arg("gamma"), py::arg("lam"), py::arg("critic_lam"), py::arg("decoupled"),
               py::arg("stream"));
}

}  // namespace

void bind_gae(py::module_& module) {
    bind<float>(module, "float32");
    bind<double>(module, "float64");
}

}  // namespace areal_mega::cuda
