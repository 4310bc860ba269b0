// A Python module with the CUDA kernels on the CPU and the bindings that areal_mega._C has for them.
#include "cuda_runtime.h"
//
#include "../../csrc/bindings/cuda/cuda.cpp"
#include "../../csrc/bindings/cuda/gae.cpp"
#include "../../csrc/bindings/cuda/pieces.cpp"
#include "../../csrc/cuda/gae.cu"
#include "../../csrc/cuda/pieces.cu"

PYBIND11_MODULE(emulated, module) {
    areal_mega::cuda::bind(module);
    module.def("take_turns_backwards", [](bool backwards) { emulation::backwards = backwards; });
}
