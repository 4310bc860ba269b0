"""What two sets of layouts have in common: boxes that lie whole inside one piece of every source that has them.

Ranks with the same layout are handled once: everything here is between distinct layouts, however many ranks there are.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from areal_mega.resharding.coordinates import Box, Layout

Integers = NDArray[np.int64]


class Distinct(NamedTuple):
    """Layouts without repetition. of: the number of each rank's layout. ranks: those that have it, by its number."""

    layouts: tuple[Layout, ...]
    of: tuple[int, ...]
    ranks: tuple[tuple[int, ...], ...]

    @classmethod
    def among(cls, layouts: Sequence[Layout]) -> Distinct:
        """Layouts are the same if they are one object, as for ranks at the same place."""
        numbers: dict[int, int] = {}
        of = tuple(numbers.setdefault(id(layout), len(numbers)) for layout in layouts)
        ranks: list[list[int]] = [[] for _ in numbers]
        for rank, number in enumerate(of):
            ranks[number].append(rank)
        return cls(tuple(layouts[r[0]] for r in ranks), of, tuple(map(tuple, ranks)))


@dataclass(frozen=True, eq=False)
class Block:
    """The boxes that one destination layout needs and the same source layouts have, in the order of transfer."""

    destination: int
    holders: int
    boxes: tuple[Box, ...]

    @cached_property
    def ends(self) -> Integers:
        """Elements up to the end of each box, all boxes laid end to end."""
        return np.cumsum([box.numel for box in self.boxes])

    @cached_property
    def row_elements(self) -> Integers:
        """What a box can be cut into: elements for each index of its first dimension."""
        return np.array([box.numel // box.shape[0] if box.shape else 1 for box in self.boxes])

    @property
    def numel(self) -> int:
        return int(self.ends[-1])


@dataclass(frozen=True, eq=False)
class Overlap:
    """All blocks. holders: sets of distinct source layouts, by their number in `Block.holders`. order: the place of
    each Hugging Face tensor in the order of transfer, which follows the destinations' own."""

    sources: Distinct
    destinations: Distinct
    holders: tuple[tuple[int, ...], ...]
    blocks: tuple[Block, ...]
    order: dict[str, int]

    @cached_property
    def of_destination(self) -> tuple[tuple[int, ...], ...]:
        """The numbers of each distinct destination layout's blocks."""
        found: list[list[int]] = [[] for _ in self.destinations.layouts]
        for number, block in enumerate(self.blocks):
            found[block.destination].append(number)
        return tuple(map(tuple, found))


def intersect(sources: Sequence[Layout], destinations: Sequence[Layout]) -> Overlap:
    """Raises a ValueError if a destination needs elements that no source has."""
    have, need = Distinct.among(sources), Distinct.among(destinations)
    held, wanted = _by_tensor(have.layouts), _by_tensor(need.layouts, refined=True)
    order = _order(need.layouts)
    holder_sets: dict[tuple[int, ...], int] = {}
    blocks: dict[tuple[int, int], list[Box]] = {}
    for name in order:
        there = held.get(name, {})
        for box, wanting in wanted[name].items():
            for part, holders in _parts(box, there):
                number = holder_sets.setdefault(holders, len(holder_sets))
                for destination in wanting:
                    blocks.setdefault((destination, number), []).append(part)
    made = tuple(Block(*key, tuple(boxes)) for key, boxes in blocks.items())
    overlap = Overlap(have, need, tuple(holder_sets), made, order)
    _check(overlap)
    return overlap


def _order(layouts: Sequence[Layout]) -> dict[str, int]:
    """Tensors by how far from the beginning they first stand in some layout."""
    first: dict[str, int] = {}
    for layout in layouts:
        for position, name in enumerate(layout.by_name):
            first[name] = min(position, first.get(name, position))
    return {name: number for number, name in enumerate(sorted(first, key=lambda name: (first[name], name)))}


def _by_tensor(layouts: Sequence[Layout], refined: bool = False) -> dict[str, dict[Box, tuple[int, ...]]]:
    """Tensor → its distinct boxes → the layouts that have it. refined: what a layout has twice counts once."""
    found: dict[str, dict[Box, list[int]]] = {}
    for number, layout in enumerate(layouts):
        for name, pieces in layout.by_name.items():
            boxes = [piece.box for piece in pieces]
            if refined and len(boxes) > 1:
                boxes = [box for box, _ in _refine(boxes)]
            of_tensor = found.setdefault(name, {})
            for box in dict.fromkeys(boxes):
                of_tensor.setdefault(box, []).append(number)
    return {name: {box: tuple(numbers) for box, numbers in boxes.items()} for name, boxes in found.items()}


def _parts(box: Box, held: dict[Box, tuple[int, ...]]) -> Iterator[tuple[Box, tuple[int, ...]]]:
    """``box``, cut so that each part lies inside all source boxes that it meets; with the layouts that have these."""
    if box in held and len(held) == 1:
        yield box, held[box]
        return
    common = [(both, holders) for other, holders in held.items() if (both := box.intersect(other))]
    if len(common) == 1:
        yield common[0]
        return
    for part, cover in _refine([both for both, _ in common]):
        yield part, tuple(sorted({layout for number in cover for layout in common[number][1]}))


_Cell = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]  # first and last corner, boxes that cover it


def _refine(boxes: Sequence[Box]) -> Iterator[tuple[Box, tuple[int, ...]]]:
    """Disjoint parts of the boxes' union, each inside all boxes that it meets; with the numbers of these."""
    if not boxes:
        return
    cuts = [sorted({edge for box in boxes for edge in (box.start[d], box.stop[d])}) for d in range(len(boxes[0].start))]
    covers: dict[tuple[int, ...], list[int]] = {}
    for number, box in enumerate(boxes):
        edges = zip(cuts, box.start, box.stop, strict=True)
        for cell in product(*(range(bisect_left(cut, a), bisect_left(cut, b)) for cut, a, b in edges)):
            covers.setdefault(cell, []).append(number)
    cells: list[_Cell] = [(cell, tuple(i + 1 for i in cell), tuple(cover)) for cell, cover in covers.items()]
    for axis in reversed(range(len(cuts))):
        cells = _merged(cells, axis)
    for first, last, cover in sorted(cells):
        start, stop = (tuple(cut[i] for cut, i in zip(cuts, corner, strict=True)) for corner in (first, last))
        yield Box(boxes[0].name, start, stop), cover


def _merged(cells: list[_Cell], axis: int) -> list[_Cell]:
    """Neighbours along ``axis`` with the same cover, as one."""

    def others(cell: _Cell) -> tuple:
        first, last, cover = cell
        return first[:axis], first[axis + 1 :], last[:axis], last[axis + 1 :], cover

    merged: list[_Cell] = []
    for cell in sorted(cells, key=lambda cell: (others(cell), cell[0])):
        before = merged[-1] if merged else None
        if before and others(before) == others(cell) and before[1][axis] == cell[0][axis]:
            merged[-1] = before[0], cell[1], cell[2]
        else:
            merged.append(cell)
    return merged


def _check(overlap: Overlap) -> None:
    """That every element a destination needs is in exactly one block: the boxes of one need are disjoint, and so are
    the parts of each, so it is enough to count."""
    for number, layout in enumerate(overlap.destinations.layouts):
        found: dict[str, int] = {}
        for block in (overlap.blocks[b] for b in overlap.of_destination[number]):
            for box in block.boxes:
                found[box.name] = found.get(box.name, 0) + box.numel
        for name, pieces in layout.by_name.items():
            expected = _union(piece.box for piece in pieces)
            if found.get(name, 0) != expected:
                raise ValueError(f"no source has {expected - found.get(name, 0)} of the {expected} elements of {name}")


def _union(boxes: Iterable[Box]) -> int:
    """Elements that are in some box."""
    counted: list[Box] = []
    for box in boxes:
        rest = [box]
        for other in counted:
            rest = [part for piece in rest for part in piece.without(other)]
        counted += rest
    return sum(box.numel for box in counted)
