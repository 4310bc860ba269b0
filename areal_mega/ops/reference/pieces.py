"""Pieces of tensors to and from one buffer, row of the table by row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor


def pack_pieces(tensors: Sequence[Tensor], rows: Tensor, total: int, buffer: Tensor) -> None:
    """See `areal_mega.ops.pieces`; the arguments have been checked."""
    for in_tensor, in_buffer in _views(tensors, rows, buffer):
        in_buffer.copy_(in_tensor)


def unpack_pieces(buffer: Tensor, rows: Tensor, total: int, tensors: Sequence[Tensor]) -> None:
    """See `areal_mega.ops.pieces`; the arguments have been checked."""
    for in_tensor, in_buffer in _views(tensors, rows, buffer):
        in_tensor.copy_(in_buffer)


def _views(tensors: Sequence[Tensor], rows: Tensor, buffer: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """The bytes of each row, in its tensor and in the buffer, in the same shape."""
    for index, offset, buffer_offset, run, n0, stride0, n1, stride1, n2, stride2, _ in rows.tolist():
        tensor = tensors[index]
        memory = torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(tensor.untyped_storage())
        first = tensor.storage_offset() * tensor.element_size() + offset
        shape = (n0, n1, n2, run)
        in_tensor = memory.as_strided(shape, (stride0, stride1, stride2, 1), first)
        yield in_tensor, buffer[buffer_offset : buffer_offset + in_tensor.numel()].view(shape)
