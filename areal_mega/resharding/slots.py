"""Messages as bytes: where their slices lie in a buffer, as the kernels that pack and unpack want to know it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from areal_mega import ops
from areal_mega.resharding.coordinates import Box, Piece
from areal_mega.resharding.layouts import contiguous_strides
from areal_mega.resharding.plan import Message, Plan

ALIGNMENT = 64

DtypeOf = Callable[[str], torch.dtype]  # of a Hugging Face tensor, on its way


@dataclass(frozen=True)
class Slot:
    """A message in its destination's buffer. offset, nbytes: of the part of the buffer that is for its chunk."""

    source: int
    chunk: int
    offset: int
    nbytes: int


@dataclass(frozen=True)
class Place:
    """A box of a Hugging Face tensor in one of the holder's own tensors, and from byte ``offset`` on in a buffer,
    row-major."""

    parameter: str
    start: tuple[int, ...]
    stop: tuple[int, ...]
    offset: int
    box: Box


def places(message: Message, shapes: Mapping[str, tuple[int, ...]], dtype_of: DtypeOf, offset: int = 0) -> list[Place]:
    """A message's slices, one after the other without gaps, from byte ``offset`` on.

    shapes: of the holder's tensors. A box that the holder has twice is in the message once.
    """
    found: list[Place] = []
    before, numel = -1, 0
    for part in message.slices:
        if part.offset != before:
            offset += numel
            before, numel = part.offset, part.piece.box.numel * dtype_of(part.piece.box.name).itemsize
        found.append(Place(part.piece.parameter, *rectangle(part.piece, shapes), offset, part.piece.box))
    return found


def nbytes(message: Message, dtype_of: DtypeOf) -> int:
    """Bytes of a message."""
    sizes = {part.offset: part.piece.box.numel * dtype_of(part.piece.box.name).itemsize for part in message.slices}
    return sum(sizes.values())


def slots(plan: Plan, destination: int, dtype_of: DtypeOf) -> list[Slot]:
    """Where every message to a destination lies, those that stay on its device too: chunk by chunk from 0 on."""
    made: list[Slot] = []
    end = 0
    for message in plan.receives(destination, local=True):
        if not made or message.chunk != made[-1].chunk:
            end = 0
        made.append(Slot(message.source, message.chunk, end, nbytes(message, dtype_of)))
        end += -(-made[-1].nbytes // ALIGNMENT) * ALIGNMENT
    return made


def rectangle(piece: Piece, shapes: Mapping[str, tuple[int, ...]]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """First and last corner (exclusive) of a piece in its parameter, which may have more dimensions than the box."""
    own = contiguous_strides(shapes[piece.parameter])
    start: list[int] = []
    rest = piece.offset
    for stride in own:
        start.append(rest // stride)
        rest %= stride
    stop = [at + 1 for at in start]
    axis = 0
    for size, stride in zip(piece.box.shape, piece.strides, strict=True):
        axis = own.index(stride, axis)
        stop[axis] = start[axis] + size
        axis += 1
    return tuple(start), tuple(stop)


@dataclass(frozen=True, eq=False)
class Copies:
    """Copies between a holder's tensors and one buffer, all in one launch."""

    names: tuple[str, ...]
    table: ops.PieceTable

    @classmethod
    def between(cls, tensors: Mapping[str, Tensor], there: Iterable[Place], nbytes: int) -> Copies:
        """``there``: what is copied. nbytes: of the buffer. The tables are on the tensors' device."""
        wanted: Sequence[Place] = list(there)
        names = tuple(dict.fromkeys(place.parameter for place in wanted))
        number = {name: index for index, name in enumerate(names)}
        pieces = [ops.Piece(number[place.parameter], place.start, place.stop, place.offset) for place in wanted]
        held = [tensors[name] for name in names]
        table = ops.PieceTable.build(held, pieces, nbytes)
        return cls(names, table.to(held[0].device) if held else table)

    def pack(self, tensors: Mapping[str, Tensor], buffer: Tensor) -> None:
        """From the tensors into the buffer."""
        ops.pack_pieces([tensors[name] for name in self.names], self.table, buffer)

    def unpack(self, buffer: Tensor, tensors: Mapping[str, Tensor]) -> None:
        """From the buffer into the tensors, in place."""
        ops.unpack_pieces(buffer, self.table, [tensors[name] for name in self.names])
