#include "../cpu/logit_rows.h"

#include "bind.h"

namespace areal_mega {
namespace {

template <typename T>
void bind(py::module_& module, const std::string& dtype) {
    using C = Compute<T>;
    module.def(("logit_statistics_" + dtype).c_str(),
               [](uintptr_t logits, uintptr_t targets, uintptr_t statistics, int64_t rows, int64_t columns,
                  int64_t stride, double temperature, int threads, const std::string& isa) {
                   const Isa chosen = choose_isa(isa);
                   const LogitStatisticsArguments<T> arguments{
                       at<const T>(logits),        at<const int64_t>(targets), at<C>(statistics), rows, columns, stride,
                       static_cast<C>(temperature)};
                   py::gil_scoped_release release;
                   logit_statistics(arguments, threads, chosen);
               },
               py::arg("logits"), py::arg("targets"), py::arg("statistics"), py::arg("rows"), py::arg("columns"),
               py::arg("stride"), py::arg("temperature"), py::arg("threads"), py::arg("isa"));
    module.def(("logit_gradient_" + dtype).c_str(),
               [](uintptr_t logits, uintptr_t targets, uintptr_t lse, uintptr_t entropy, uintptr_t grad_logprob,
                  uintptr_t grad_entropy, uintptr_t out, int64_t rows, int64_t columns, int64_t width, int64_t stride,
                  int64_t out_stride, double temperature, int threads, const std::string& isa) {
                   const Isa chosen = choose_isa(isa);
                   const LogitGradientArguments<T> arguments{at<const T>(logits),
                                                             at<const int64_t>(targets),
                                                             at<const C>(lse),
                                                             at<const C>(entropy),
                                                             at<const C>(grad_logprob),
                                                             at<const C>(grad_entropy),
                                                             at<T>(out),
                                                             rows,
                                                             columns,
                                                             width,
                                                             stride,
                                                             out_stride,
                                                             static_cast<C>(temperature)};
                   py::gil_scoped_release release;
                   logit_gradient(arguments, threads, chosen);
               },
               py::arg("logits"), py::arg("targets"), py::arg("lse"), py::arg("entropy"), py::arg("grad_logprob"),
               py::arg("grad_entropy"), py::arg("out"), py::arg("rows"), py::arg("columns"), py::arg("width"),
               py::arg("stride"), py::arg("out_stride"), py::arg("temperature"), py::arg("threads"), py::arg("isa"));
}

}  // namespace

void bind_logit_rows(py::module_& module) {
    bind<float>(module, "float32");
    bind<double>(module, "float64");
    bind<BFloat16>(module, "bfloat16");
    bind<Float16>(module, "float16");
}

}  // namespace areal_mega
