"""Which bytes of many tensors lie where in one buffer: planned and checked once, used in every transfer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, pairwise
from math import prod

import torch
from torch import Tensor

# Columns of `PieceTable.rows`, one row for each strided block of bytes. In the buffer a row's bytes stand without gaps,
# run after run, the last outer dimension fastest.
TENSOR = 0  # index of its tensor
TENSOR_OFFSET = 1  # first byte, counted from the tensor's first element
BUFFER_OFFSET = 2  # first byte in the buffer
RUN = 3  # contiguous bytes in the tensor
OUTER = 4  # (count, byte stride in the tensor) of three outer dimensions in columns 4 to 9; unused ones first: (1, 0)
BEFORE = 10  # bytes of all rows above, so that work can be cut by bytes
COLUMNS = 11

_OUTER_DIMENSIONS = 3


@dataclass(frozen=True)
class Piece:
    """The box from ``start`` to ``stop`` (exclusive) of a tensor. In the buffer it stands row-major and without gaps,
    from byte ``offset`` on."""

    tensor: int
    start: tuple[int, ...]
    stop: tuple[int, ...]
    offset: int

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(b - a for a, b in zip(self.start, self.stop, strict=True))


@dataclass(frozen=True)
class Layout:
    """What a plan knows of a tensor."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: Tensor) -> Layout:
        return cls(tensor.shape, tensor.stride(), tensor.dtype)

    @property
    def overlaps_itself(self) -> bool:
        """Whether two elements may share memory, as in an expanded tensor."""
        reach = 0
        for stride, size in sorted(zip(self.strides, self.shape, strict=True)):
            if size > 1 and stride <= reach:
                return True
            reach += stride * (size - 1)
        return False


@dataclass(frozen=True, eq=False)
class PieceTable:
    """Made by `PieceTable.build`.

    rows: ``[P, COLUMNS]`` int64, see the columns above; pieces without elements have none, and one with more
    dimensions than a row can hold has several. total: bytes of all rows. buffer_bytes: least length of the buffer.
    conflict_in_buffer, conflict_in_tensors: two pieces that share bytes there, in words, so that nothing can be copied
    in this direction; empty: there are none.
    """

    rows: Tensor
    total: int
    buffer_bytes: int
    layouts: tuple[Layout, ...]
    conflict_in_buffer: str
    conflict_in_tensors: str

    @classmethod
    def build(cls, tensors: Sequence[Tensor], pieces: Sequence[Piece], buffer_bytes: int) -> PieceTable:
        """Plan the copies between the pieces of ``tensors`` and a buffer of ``buffer_bytes``.

        tensors: only shape, strides and dtype count; they may be on any device, meta too.

        Raises ValueError for a piece that is not inside its tensor or not inside the buffer.
        """
        layouts = tuple(Layout.of(tensor) for tensor in tensors)
        blocks: list[list[int]] = []
        total = 0
        for index, piece in enumerate(pieces):
            _check_inside(index, piece, layouts, buffer_bytes)
            for block in _blocks(piece, layouts[piece.tensor]):
                blocks.append([piece.tensor, *block, total])
                total += block[2] * prod(block[3::2])
        rows = torch.tensor(blocks, dtype=torch.int64).reshape(-1, COLUMNS)
        filled = {i: piece for i, piece in enumerate(pieces) if prod(piece.shape)}
        conflicts = _conflict_in_buffer(filled, layouts), _conflict_in_tensors(filled, layouts)
        return cls(rows, total, buffer_bytes, layouts, *conflicts)

    def to(self, device: torch.device | str) -> PieceTable:
        """The same table with its rows on a device, that of the tensors and the buffer."""
        return replace(self, rows=self.rows.to(device))


def _check_inside(index: int, piece: Piece, layouts: Sequence[Layout], buffer_bytes: int) -> None:
    if not 0 <= piece.tensor < len(layouts):
        raise ValueError(f"piece {index} is of tensor {piece.tensor}: expected one of the {len(layouts)} tensors")
    layout = layouts[piece.tensor]
    ranks = {len(piece.start), len(piece.stop), len(layout.shape)}
    if len(ranks) > 1 or not all(
        0 <= a <= b <= n for a, b, n in zip(piece.start, piece.stop, layout.shape, strict=True)
    ):
        raise ValueError(
            f"piece {index} goes from {list(piece.start)} to {list(piece.stop)}: "
            f"expected a box inside tensor {piece.tensor} of shape {list(layout.shape)}"
        )
    end = piece.offset + _bytes(piece, layout)
    if piece.offset < 0 or end > buffer_bytes:
        raise ValueError(
            f"piece {index} takes the bytes {piece.offset} to {end} of a buffer of {buffer_bytes}: "
            "expected them inside the buffer"
        )


def _bytes(piece: Piece, layout: Layout) -> int:
    return layout.dtype.itemsize * prod(piece.shape)


def _blocks(piece: Piece, layout: Layout) -> Iterator[tuple[int, ...]]:
    """A piece's rows, without the first and the last column: neighbouring dimensions that follow one another in memory
    are one."""
    if not prod(piece.shape):
        return
    size = layout.dtype.itemsize
    strides = [size * stride for stride in layout.strides]
    offset = sum(a * stride for a, stride in zip(piece.start, strides, strict=True))
    outer: list[tuple[int, int]] = []
    for count, stride in zip(piece.shape, strides, strict=True):
        if count == 1:
            continue
        if outer and outer[-1][1] == count * stride:
            count *= outer.pop()[0]
        outer.append((count, stride))
    run = size
    if outer and outer[-1][1] == run:
        run *= outer.pop()[0]
    yield from _rows(offset, piece.offset, run, outer)


def _rows(offset: int, buffer_offset: int, run: int, outer: list[tuple[int, int]]) -> Iterator[tuple[int, ...]]:
    """Blocks of at most three outer dimensions: what is left over becomes rows of its own."""
    if len(outer) > _OUTER_DIMENSIONS:
        (count, stride), *inner = outer
        step = run * prod(n for n, _ in inner)
        for i in range(count):
            yield from _rows(offset + i * stride, buffer_offset + i * step, run, inner)
        return
    padded = [(1, 0)] * (_OUTER_DIMENSIONS - len(outer)) + outer
    yield offset, buffer_offset, run, *(number for pair in padded for number in pair)


def _conflict_in_buffer(pieces: Mapping[int, Piece], layouts: Sequence[Layout]) -> str:
    for a, b in pairwise(sorted(pieces, key=lambda i: pieces[i].offset)):
        first = pieces[a]
        if first.offset + _bytes(first, layouts[first.tensor]) > pieces[b].offset:
            return f"pieces {a} and {b} overlap in the buffer: {first} and {pieces[b]}"
    return ""


def _conflict_in_tensors(pieces: Mapping[int, Piece], layouts: Sequence[Layout]) -> str:
    by_tensor: dict[int, list[int]] = {}
    for i, piece in pieces.items():
        by_tensor.setdefault(piece.tensor, []).append(i)
    for tensor, members in by_tensor.items():
        if layouts[tensor].overlaps_itself:
            return f"elements of tensor {tensor} share memory: {layouts[tensor]}"
        for a, b in _neighbours(pieces, members):
            if _intersect(pieces[a], pieces[b]):
                return f"pieces {a} and {b} overlap in their tensor: {pieces[a]} and {pieces[b]}"
    return ""


def _neighbours(pieces: Mapping[int, Piece], members: Sequence[int]) -> Iterator[tuple[int, int]]:
    """All pairs of pieces of one tensor that overlap along the dimension that sets the most of them apart."""
    rank = len(pieces[members[0]].start)
    if not rank:
        yield from combinations(members, 2)
        return
    axis = max(range(rank), key=lambda d: len({pieces[i].start[d] for i in members}))
    ordered = sorted(members, key=lambda i: pieces[i].start[axis])
    for position, a in enumerate(ordered):
        for b in ordered[position + 1 :]:
            if pieces[b].start[axis] >= pieces[a].stop[axis]:
                break
            yield a, b


def _intersect(a: Piece, b: Piece) -> bool:
    begins = (max(pair) for pair in zip(a.start, b.start, strict=True))
    ends = (min(pair) for pair in zip(a.stop, b.stop, strict=True))
    return all(begin < end for begin, end in zip(begins, ends, strict=True))
