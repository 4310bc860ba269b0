// Pieces of tensors to and from one buffer, on a GPU.
#pragma once

#include <cuda_runtime.h>

#include "../pieces.h"

namespace areal_mega {

// Enqueues the copies of all rows on the stream. pack: from the tensors to the buffer, else back. The addresses and the
// rows are in the GPU's memory too.
void copy_pieces(const PieceArguments& arguments, bool pack, cudaStream_t stream);

}  // namespace areal_mega
