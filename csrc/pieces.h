// Pieces of many tensors, and where they stand in one buffer.
#pragma once

#include <cstdint>

namespace areal_mega {

// A row of areal_mega.ops.piece_table.PieceTable, column by column. In the buffer a row's bytes stand without gaps, run
// after run, the last outer dimension fastest.
struct PieceRow {
    int64_t tensor;
    int64_t tensor_offset;  // first byte, counted from the tensor's first element
    int64_t buffer_offset;  // first byte
    int64_t run;            // contiguous bytes in the tensor
    struct {
        int64_t count;
        int64_t stride;  // bytes in the tensor
    } outer[3];
    int64_t before;  // bytes of all rows above
};

struct PieceArguments {
    uint8_t* const* addresses;  // of the tensors' first elements
    const PieceRow* rows;       // [count], none empty
    int64_t count;
    int64_t total;  // bytes of all rows
    uint8_t* buffer;
};

}  // namespace areal_mega
