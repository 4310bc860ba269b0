// What the files of this folder share: each binds the kernels of one operation.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>

#include "../cpu/isa.h"

namespace areal_mega {

namespace py = pybind11;

// Tensors come as addresses of contiguous memory that areal_mega.ops.native has checked and keeps alive during the
// call; address 0 means "not given".
template <typename T>
T* at(uintptr_t address) {
    return reinterpret_cast<T*>(address);
}

}  // namespace areal_mega
