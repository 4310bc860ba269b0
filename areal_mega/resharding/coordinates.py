"""The one coordinate system for weights: every element is known by its Hugging Face tensor and its indices there.

A holder of weights (a Megatron rank, an SGLang rank, a safetensors file) is described by a `Layout`: which boxes of
which Hugging Face tensors it holds, and where in its own tensors they are. What two holders exchange is the
intersection of their boxes; loading, saving, converting and resharding are the same operation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, order=True)
class Box:
    """The indices from ``start`` to ``stop`` (exclusive), one each for every dimension, of the Hugging Face tensor
    ``name``."""

    name: str
    start: tuple[int, ...]
    stop: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(b - a for a, b in zip(self.start, self.stop, strict=True))

    @property
    def numel(self) -> int:
        return prod(self.shape)

    @property
    def slices(self) -> tuple[slice, ...]:
        """What indexes the box in the whole tensor."""
        return tuple(map(slice, self.start, self.stop))

    def intersect(self, other: Box) -> Box | None:
        """What both hold; None if that is nothing."""
        if self.name != other.name:
            return None
        start = tuple(map(max, self.start, other.start))
        stop = tuple(map(min, self.stop, other.stop))
        return Box(self.name, start, stop) if all(a < b for a, b in zip(start, stop, strict=True)) else None


@dataclass(frozen=True)
class Piece:
    """A box, and where its elements are in one of the holder's own tensors.

    The element at ``box.start + (i, j, ...)`` is element ``offset + i * strides[0] + j * strides[1] + ...`` of the
    contiguous tensor ``parameter``.
    """

    box: Box
    parameter: str
    offset: int
    strides: tuple[int, ...]

    def part(self, box: Box) -> Piece:
        """The same for a box inside this one."""
        moved = (s * (b - a) for s, a, b in zip(self.strides, self.box.start, box.start, strict=True))
        return Piece(box, self.parameter, self.offset + sum(moved), self.strides)

    def view(self, tensor: Tensor) -> Tensor:
        """The piece's elements, shaped like its box, in the holder's contiguous ``tensor``."""
        return tensor.view(-1)[self.offset :].as_strided(self.box.shape, self.strides)


@dataclass(frozen=True, eq=False)
class Layout:
    """Everything one holder has.

    shapes: of its own tensors, by name; each is contiguous. pieces: which boxes they are made of; no element of a
    tensor is in two of them, and one that is in none is padding, which holds 0.
    """

    shapes: Mapping[str, tuple[int, ...]]
    pieces: tuple[Piece, ...]

    @cached_property
    def by_name(self) -> Mapping[str, tuple[Piece, ...]]:
        """The pieces of each Hugging Face tensor."""
        found: dict[str, list[Piece]] = {}
        for piece in self.pieces:
            found.setdefault(piece.box.name, []).append(piece)
        return {name: tuple(pieces) for name, pieces in found.items()}

    @cached_property
    def by_parameter(self) -> Mapping[str, tuple[Piece, ...]]:
        """The pieces of each of the holder's own tensors."""
        found: dict[str, list[Piece]] = {name: [] for name in self.shapes}
        for piece in self.pieces:
            found[piece.parameter].append(piece)
        return {name: tuple(pieces) for name, pieces in found.items()}

    @cached_property
    def numel(self) -> int:
        """Elements in all pieces; a box that is held twice counts twice."""
        return sum(piece.box.numel for piece in self.pieces)
