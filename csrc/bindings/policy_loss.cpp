#include "../cpu/policy_loss.h"

#include <cstring>
#include <stdexcept>

#include "bind.h"

namespace areal_mega {
namespace {

PolicyLossOptions options_of(const std::vector<double>& numbers) {
    PolicyLossOptions options;
    if (numbers.size() * sizeof(double) != sizeof options) {
        throw std::invalid_argument("options has " + std::to_string(numbers.size()) + " numbers: expected " +
                                    std::to_string(sizeof options / sizeof(double)));
    }
    std::memcpy(&options, numbers.data(), sizeof options);
    return options;
}

template <typename T>
void bind(py::module_& module, const char* name) {
    module.def(
        name,
        [](uintptr_t logprobs, uintptr_t entropy, uintptr_t advantages, uintptr_t proximal_logprobs,
           uintptr_t loss_mask, uintptr_t loss_weight, uintptr_t behavior_logprobs, uintptr_t reference_logprobs,
           uintptr_t cu_seqlens, uintptr_t shared_log_ratio, uintptr_t shared_log_behavior, uintptr_t loss,
           uintptr_t statistics, uintptr_t grad_logprobs, uintptr_t grad_entropy, int64_t tokens, int64_t sequences,
           const std::vector<double>& options, int threads, const std::string& isa) {
            const Isa chosen = choose_isa(isa);
            const PolicyLossArguments<T> arguments{at<const T>(logprobs),
                                                   at<const T>(entropy),
                                                   at<const T>(advantages),
                                                   at<const T>(proximal_logprobs),
                                                   at<const bool>(loss_mask),
                                                   at<const T>(loss_weight),
                                                   at<const T>(behavior_logprobs),
                                                   at<const T>(reference_logprobs),
                                                   at<const int32_t>(cu_seqlens),
                                                   at<T>(shared_log_ratio),
                                                   at<T>(shared_log_behavior),
                                                   at<T>(loss),
                                                   at<double>(statistics),
                                                   at<T>(grad_logprobs),
                                                   at<T>(grad_entropy),
                                                   tokens,
                                                   sequences,
                                                   options_of(options)};
            py::gil_scoped_release release;
            policy_loss(arguments, threads, chosen);
        },
        py::arg("logprobs"), py::arg("entropy"), py::arg("advantages"), py::arg("proximal_logprobs"),
        py::arg("loss_mask"), py::arg("loss_weight"), py::arg("behavior_logprobs"), py::arg("reference_logprobs"),
        py::arg("cu_seqlens"), py::arg("shared_log_ratio"), py::arg("shared_log_behavior"), py::arg("loss"),
        py::arg("statistics"), py::arg("grad_logprobs"), py::arg("grad_entropy"), py::arg("tokens"),
        py::arg("sequences"), py::arg("options"), py::arg("threads"), py::arg("isa"));
}

}  // namespace

void bind_policy_loss(py::module_& module) {
    bind<float>(module, "policy_loss_float32");
    bind<double>(module, "policy_loss_float64");
}

}  // namespace areal_mega
