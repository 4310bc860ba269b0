// Packed GAE on a GPU.
#pragma once

#include <cuda_runtime.h>

#include "../gae.h"

namespace areal_mega {

// Bytes of memory that a call needs for itself.
template <typename T>
int64_t gae_workspace(int64_t tokens, int64_t sequences, bool decoupled);

// Enqueues the work for all sequences on the stream. tokens: N, which the host cannot read from cu_seqlens.
template <typename T>
void gae(const GaeArguments<T>& arguments, int64_t tokens, void* workspace, cudaStream_t stream);

}  // namespace areal_mega
