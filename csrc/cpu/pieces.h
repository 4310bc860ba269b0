// Pieces of tensors to and from one buffer, on the CPU.
#pragma once

#include "../pieces.h"
#include "isa.h"

namespace areal_mega {

// The bytes [first, last) of all rows, counted as if the rows stood one after the other. row: the one that `first` is
// in. pack: from the tensors to the buffer, else back. streaming: past the caches, for copies that do not fit there.
#define AREAL_MEGA_DECLARE(isa)                                                                            \
    namespace isa {                                                                                        \
    void copy_pieces(const PieceArguments& arguments, int64_t row, int64_t first, int64_t last, bool pack, \
                     bool streaming);                                                                      \
    }
AREAL_MEGA_FOR_EACH_ISA(AREAL_MEGA_DECLARE)
#undef AREAL_MEGA_DECLARE

// All rows, on at most `threads` threads.
void copy_pieces(const PieceArguments& arguments, bool pack, int threads, Isa isa);

}  // namespace areal_mega
