#include "../cpu/balance.h"

#include "bind.h"

namespace areal_mega {

void bind_balance(py::module_& module) {
    module.def(
        "balance",
        [](uintptr_t costs, int64_t count, int64_t parts, bool equal_counts, uintptr_t part_of, int,
           const std::string&) {
            py::gil_scoped_release release;
            balance(at<const int64_t>(costs), count, parts, equal_counts, at<int64_t>(part_of));
        },
        py::arg("costs"), py::arg("count"), py::arg("parts"), py::arg("equal_counts"), py::arg("part_of"),
        py::arg("threads"), py::arg("isa"));
    module.def(
        "first_fit",
        [](uintptr_t costs, int64_t count, int64_t budget, uintptr_t bin_of, int, const std::string&) {
            py::gil_scoped_release release;
            first_fit(at<const int64_t>(costs), count, budget, at<int64_t>(bin_of));
        },
        py::arg("costs"), py::arg("count"), py::arg("budget"), py::arg("bin_of"), py::arg("threads"), py::arg("isa"));
}

}  // namespace areal_mega
