#include "../cpu/gae.h"

#include "bind.h"

namespace areal_mega {
namespace {

template <typename T>
void bind(py::module_& module, const char* name) {
    module.def(
        name,
        [](uintptr_t rewards, uintptr_t values, uintptr_t cu_seqlens, uintptr_t loss_mask, uintptr_t bootstrap,
           uintptr_t lams, uintptr_t advantages, uintptr_t returns, int64_t sequences, double gamma, double lam,
           double critic_lam, bool decoupled, int threads, const std::string& isa) {
            const Isa chosen = choose_isa(isa);
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
            gae(arguments, threads, chosen);
        },
        py::arg("rewards"), py::arg("values"), py::arg("cu_seqlens"), py::arg("loss_mask"), py::arg("bootstrap"),
        py::arg("lams"), py::arg("advantages"), py::arg("returns"), py::arg("sequences"), py::arg("gamma"),
        py::arg("lam"), py::arg("critic_lam"), py::arg("decoupled"), py::arg("threads"), py::arg("isa"));
}

}  // namespace

void bind_gae(py::module_& module) {
    bind<float>(module, "gae_float32");
    bind<double>(module, "gae_float64");
}

}  // namespace areal_mega
