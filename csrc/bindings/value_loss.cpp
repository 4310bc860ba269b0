#include "../cpu/value_loss.h"

#include "bind.h"

namespace areal_mega {
namespace {

template <typename T>
void bind(py::module_& module, const char* name) {
    module.def(
        name,
        [](uintptr_t values, uintptr_t old_values, uintptr_t returns, uintptr_t loss_mask, uintptr_t loss_weight,
           uintptr_t loss, uintptr_t statistics, uintptr_t grad_values, int64_t tokens, double clip, int threads,
           const std::string& isa) {
            const Isa chosen = choose_isa(isa);
            const ValueLossArguments<T> arguments{
                at<const T>(values),       at<const T>(old_values),  at<const T>(returns),
                at<const bool>(loss_mask), at<const T>(loss_weight), at<T>(loss),
                at<double>(statistics),    at<T>(grad_values),       tokens,
                static_cast<T>(clip)};
            py::gil_scoped_release release;
            value_loss(arguments, threads, chosen);
        },
        py::arg("values"), py::arg("old_values"), py::arg("returns"), py::arg("loss_mask"), py::arg("loss_weight"),
        py::arg("loss"), py::arg("statistics"), py::arg("grad_values"), py::arg("tokens"), py::arg("clip"),
        py::arg("threads"), py::arg("isa"));
}

}  // namespace

void bind_value_loss(py::module_& module) {
    bind<float>(module, "value_loss_float32");
    bind<double>(module, "value_loss_float64");
}

}  // namespace areal_mega
