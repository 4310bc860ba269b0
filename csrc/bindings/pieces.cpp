#include "../cpu/pieces.h"

#include "bind.h"

namespace areal_mega {
namespace {

void bind(py::module_& module, const char* name, bool pack) {
    module.def(
        name,
        [pack](uintptr_t addresses, uintptr_t rows, int64_t count, int64_t total, uintptr_t buffer, int threads,
               const std::string& isa) {
            const Isa chosen = choose_isa(isa);
            const PieceArguments arguments{at<uint8_t* const>(addresses), at<const PieceRow>(rows), count, total,
                                           at<uint8_t>(buffer)};
            py::gil_scoped_release release;
            copy_pieces(arguments, pack, threads, chosen);
        },
        py::arg("addresses"), py::arg("rows"), py::arg("count"), py::arg("total"), py::arg("buffer"),
        py::arg("threads"), py::arg("isa"));
}

}  // namespace

void bind_pieces(py::module_& module) {
    static_assert(sizeof(PieceRow) == 11 * sizeof(int64_t), "as many columns as areal_mega.ops.piece_table has");
    bind(module, "pack_pieces", true);
    bind(module, "unpack_pieces", false);
}

}  // namespace areal_mega
