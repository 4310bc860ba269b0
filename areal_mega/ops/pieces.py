"""Thousands of slices of tensors to and from one buffer, in one call: what resharding and transfers are made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from areal_mega.ops import native
from areal_mega.ops.backend import choose
from areal_mega.ops.piece_table import Layout, Piece, PieceTable
from areal_mega.ops.reference import pieces as reference

__all__ = ["Piece", "PieceTable", "pack_pieces", "unpack_pieces"]


def pack_pieces(tensors: Sequence[Tensor], table: PieceTable, buffer: Tensor, backend: str = "") -> None:
    """Copy the pieces of the tensors into the buffer; its other bytes stay as they are.

    tensors: of the shapes, strides and dtypes that the table was built for. table: on the same device, see
    `PieceTable.to`. buffer: contiguous uint8, one dimension, at least ``table.buffer_bytes`` long; it shares no memory
    with the tensors. backend: ``cpp``, ``cuda`` or ``reference``; empty: see `areal_mega.ops.backend.choose`.

    Bytes are copied, whatever the dtype; no gradient flows. On a GPU all copies are one launch, which nothing waits
    for.
    Raises ValueError for tensors or a buffer other than these, and for pieces that overlap in the buffer; RuntimeError
    while a CUDA graph is captured, since the tensors' addresses come from the host.
    """
    _check(tensors, table, buffer, table.conflict_in_buffer)
    with torch.no_grad():
        torch.ops.areal_mega.pack_pieces(list(tensors), table.rows, table.total, buffer, backend)


def unpack_pieces(buffer: Tensor, table: PieceTable, tensors: Sequence[Tensor], backend: str = "") -> None:
    """Copy the pieces from the buffer into the tensors, in place; what is outside of the pieces stays as it is.

    Arguments as in `pack_pieces`. The tensors share no memory with one another.
    Raises as there, and ValueError for pieces that overlap in their tensor instead.
    """
    _check(tensors, table, buffer, table.conflict_in_tensors)
    with torch.no_grad():
        torch.ops.areal_mega.unpack_pieces(buffer, table.rows, table.total, list(tensors), backend)


def _check(tensors: Sequence[Tensor], table: PieceTable, buffer: Tensor, conflict: str) -> None:
    if conflict:
        raise ValueError(conflict)
    if buffer.dtype != torch.uint8 or buffer.dim() != 1 or not buffer.is_contiguous():
        raise ValueError(
            f"buffer is {buffer.dtype} of shape {list(buffer.shape)} with strides {list(buffer.stride())}: "
            "expected contiguous torch.uint8 of one dimension"
        )
    if buffer.numel() < table.buffer_bytes:
        raise ValueError(f"buffer has {buffer.numel()} bytes: expected {table.buffer_bytes} or more, as in the table")
    if table.rows.device != buffer.device:
        raise ValueError(f"table is on {table.rows.device}: expected {buffer.device}, like buffer; see PieceTable.to")
    if len(tensors) != len(table.layouts):
        raise ValueError(f"tensors has {len(tensors)} entries: expected {len(table.layouts)}, as in the table")
    for i, (tensor, layout) in enumerate(zip(tensors, table.layouts, strict=True)):
        if tensor.device != buffer.device or Layout.of(tensor) != layout:
            raise ValueError(
                f"tensors[{i}] is {Layout.of(tensor)} on {tensor.device}: expected {layout} on {buffer.device}, "
                "as the table was built for"
            )


def _pack_cpp(tensors: Sequence[Tensor], rows: Tensor, total: int, buffer: Tensor) -> None:
    native.cpu("pack_pieces", **_arguments(tensors, rows, total, buffer))


def _unpack_cpp(buffer: Tensor, rows: Tensor, total: int, tensors: Sequence[Tensor]) -> None:
    native.cpu("unpack_pieces", **_arguments(tensors, rows, total, buffer))


def _pack_cuda(tensors: Sequence[Tensor], rows: Tensor, total: int, buffer: Tensor) -> None:
    native.cuda("pack_pieces", **_arguments(tensors, rows, total, buffer))


def _unpack_cuda(buffer: Tensor, rows: Tensor, total: int, tensors: Sequence[Tensor]) -> None:
    native.cuda("unpack_pieces", **_arguments(tensors, rows, total, buffer))


def _arguments(tensors: Sequence[Tensor], rows: Tensor, total: int, buffer: Tensor) -> dict[str, native.Argument]:
    addresses = torch.tensor([tensor.data_ptr() for tensor in tensors], dtype=torch.int64)
    if buffer.is_cuda:
        addresses = _to_gpu(addresses, buffer.device)
    return {"addresses": addresses, "rows": rows, "count": len(rows), "total": total, "buffer": buffer}


def _to_gpu(addresses: Tensor, device: torch.device) -> Tensor:
    """A copy that the host does not wait for; torch keeps the pinned memory until it has been made."""
    with torch.cuda.device(device):
        if torch.cuda.is_current_stream_capturing():
            raise RuntimeError("pieces cannot be copied in a CUDA graph: the tensors' addresses come from the host")
    return addresses.pin_memory().to(device, non_blocking=True)


_PACK = {"cpp": _pack_cpp, "cuda": _pack_cuda, "reference": reference.pack_pieces}
_UNPACK = {"cpp": _unpack_cpp, "cuda": _unpack_cuda, "reference": reference.unpack_pieces}


def _run_pack(tensors: list[Tensor], rows: Tensor, total: int, buffer: Tensor, backend: str) -> None:
    choose("pack_pieces", _PACK, buffer.device, backend)(tensors, rows, total, buffer)


def _run_unpack(buffer: Tensor, rows: Tensor, total: int, tensors: list[Tensor], backend: str) -> None:
    choose("unpack_pieces", _UNPACK, buffer.device, backend)(buffer, rows, total, tensors)


def _run_fake(*_: Any) -> None:
    pass


for _name, _schema, _implementation in (
    ("pack_pieces", "(Tensor[] tensors, Tensor rows, int total, Tensor(a!) buffer, str backend) -> ()", _run_pack),
    ("unpack_pieces", "(Tensor buffer, Tensor rows, int total, Tensor(a!)[] tensors, str backend) -> ()", _run_unpack),
):
    torch.library.define(f"areal_mega::{_name}", _schema)
    torch.library.impl(f"areal_mega::{_name}", ("cpu", "cuda"), _implementation)
    torch.library.register_fake(f"areal_mega::{_name}", _run_fake)
