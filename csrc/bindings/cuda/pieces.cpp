#include "../../cuda/pieces.h"

#include "../bind.h"

namespace areal_mega::cuda {
namespace {

void bind(py::module_& module, const char* name, bool pack) {
    module.def(
        name,
        [pack](uintptr_t addresses, uintptr_t rows, int64_t count, int64_t total, uintptr_t buffer, uintptr_t stream) {
            const PieceArguments arguments{at<uint8_t* const>(addresses), at<const PieceRow>(rows), count, total,
                                           at<uint8_t>(buffer)};
            py::gil_scoped_release release;
            copy_pieces(arguments, pack, at<CUstream_st>(stream));
        },
        py::arg("addresses"), py::arg("rows"), py::arg("count"), py::arg("total"), py::arg("buffer"),
        py::arg("stream"));
}

}  // namespace

void bind_pieces(py::module_& module) {
    bind(module, "pack_pieces", true);
    bind(module, "unpack_pieces", false);
}

}  // namespace areal_mega::cuda
