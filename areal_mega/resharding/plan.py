"""Every planned movement of weights: which rank sends which elements to which rank.

A plan is made from layouts alone, once; loading, saving, converting and updating engines carry it out. It moves the
least: each destination gets each element that it does not hold already exactly once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

from areal_mega.resharding.assign import Devices, Flows, assign
from areal_mega.resharding.coordinates import Box, Layout, Piece
from areal_mega.resharding.intersect import Integers, Overlap, intersect


@dataclass(frozen=True)
class Slice:
    """Elements ``offset`` to ``offset + piece.box.numel`` of a message, row-major: where they are in a rank's own
    tensors."""

    piece: Piece
    offset: int


@dataclass(frozen=True)
class Message:
    """What one rank sends to another in one chunk: contiguous, without gaps. slices: of the rank that was asked. A
    destination that has an element in two places has two slices for it."""

    source: int
    destination: int
    chunk: int
    numel: int
    slices: tuple[Slice, ...]


@dataclass(frozen=True)
class Copy:
    """From a source's tensor into a destination's tensor on the same device; both boxes are the same."""

    source: int
    source_piece: Piece
    destination: int
    destination_piece: Piece


@dataclass(frozen=True)
class Statistics:
    """In elements. needed: of all destinations. moved: between devices. max_in, max_out: of the device that receives
    or sends most. slices: boxes in all messages. copies: boxes copied on the devices."""

    needed: int
    moved: int
    max_in: int
    max_out: int
    messages: int
    slices: int
    copies: int

    @property
    def local_fraction(self) -> float:
        """The part of what is needed that the destinations' devices hold already."""
        return 1 - self.moved / self.needed if self.needed else 1.0


@dataclass(frozen=True, eq=False)
class Plan:
    """Made by `plan`. chunks: the tensors' places in the order of transfer at which a new chunk begins."""

    overlap: Overlap
    devices: Devices
    flows: Flows
    chunks: tuple[int, ...]

    def on(self, devices: Devices) -> Plan:
        """The same ranks' plan on other devices."""
        return Plan(self.overlap, devices, assign(self.overlap, devices), self.chunks)

    def sends(self, rank: int, *, local: bool = False) -> Iterator[Message]:
        """The messages that a source sends, by chunk and destination, with slices of its own tensors.

        local: also those that stay on a device, for a source and a destination that are two processes there.
        """
        layout = self.overlap.sources.layouts[self.overlap.sources.of[rank]]
        for key, boxes in self._messages((self.flows.source == rank) & (local | ~self.flows.local)):
            yield _message(key, [(box, [_inside(layout, box)]) for box in boxes])

    def receives(self, rank: int, *, local: bool = False) -> Iterator[Message]:
        """The messages that a destination receives, by chunk and source, with slices of its own tensors.

        local: as in `sends`.
        """
        layout = self.overlap.destinations.layouts[self.overlap.destinations.of[rank]]
        for key, boxes in self._messages((self.flows.destination == rank) & (local | ~self.flows.local)):
            yield _message(key, [(box, _all_inside(layout, box)) for box in boxes])

    def stays(self, message: Message) -> bool:
        """Whether a message's source and destination are on the same device."""
        return self.devices.source[message.source] == self.devices.destination[message.destination]

    def copies(self, rank: int) -> Iterator[Copy]:
        """What a destination finds on its own device."""
        for flow in np.flatnonzero((self.flows.destination == rank) & self.flows.local):
            source = int(self.flows.source[flow])
            there = self.overlap.sources.layouts[self.overlap.sources.of[source]]
            here = self.overlap.destinations.layouts[self.overlap.destinations.of[rank]]
            for box in self._boxes(int(flow)):
                for piece in _all_inside(here, box):
                    yield Copy(source, _inside(there, box), rank, piece)

    @cached_property
    def statistics(self) -> Statistics:
        remote = ~self.flows.local
        sizes = self.flows.numel
        moved = sizes[remote]
        count = max((*self.devices.source, *self.devices.destination), default=-1) + 1
        sources, destinations = (np.array(d, np.int64) for d in (self.devices.source, self.devices.destination))
        out_of = np.bincount(sources[self.flows.source[remote]], moved, count)
        into = np.bincount(destinations[self.flows.destination[remote]], moved, count)
        boxes = self._box_counts
        return Statistics(
            needed=int(sizes.sum()),
            moved=int(moved.sum()),
            max_in=int(into.max(initial=0)),
            max_out=int(out_of.max(initial=0)),
            messages=len(self._message_keys),
            slices=int(boxes[remote].sum()),
            copies=int(boxes[self.flows.local].sum()),
        )

    @cached_property
    def _box_counts(self) -> Integers:
        """Boxes in each flow."""
        first, last = self._box_ranges
        return last - first

    @cached_property
    def _box_ranges(self) -> tuple[Integers, Integers]:
        """Of each flow: its first box in its block, and the one after its last."""
        first, last = (np.zeros(len(self.flows.block), np.int64) for _ in range(2))
        by_block = np.argsort(self.flows.block, kind="stable")
        starts = np.searchsorted(self.flows.block[by_block], np.arange(len(self.overlap.blocks) + 1))
        for number, (a, b) in enumerate(pairwise(starts.tolist())):
            these = by_block[a:b]
            ends = self.overlap.blocks[number].ends
            first[these] = np.searchsorted(ends, self.flows.begin[these], side="right")
            last[these] = np.searchsorted(ends, self.flows.end[these], side="left") + 1
        return first, last

    @cached_property
    def _message_keys(self) -> Integers:
        """``[M, 3]``: source, destination and chunk of every message."""
        first, last = self._box_ranges
        chunk_of = [self._chunks_of_boxes(number) for number in range(len(self.overlap.blocks))]
        keys: list[tuple[int, int, int]] = []
        for flow in np.flatnonzero(~self.flows.local):
            chunks = chunk_of[int(self.flows.block[flow])]
            a, b = int(chunks[first[flow]]), int(chunks[last[flow] - 1])
            pair = int(self.flows.source[flow]), int(self.flows.destination[flow])
            if a == b:
                keys.append((*pair, a))
            else:
                keys += [(*pair, int(c)) for c in np.unique(chunks[first[flow] : last[flow]])]
        return np.unique(np.array(keys, np.int64).reshape(-1, 3), axis=0)

    def _chunks_of_boxes(self, block: int) -> Integers:
        if len(self.chunks) == 1:
            return np.zeros(len(self.overlap.blocks[block].boxes), np.int64)
        places = [self.overlap.order[box.name] for box in self.overlap.blocks[block].boxes]
        return np.searchsorted(self.chunks, places, side="right") - 1

    def _messages(self, chosen: np.ndarray) -> Iterator[tuple[tuple[int, int, int], list[Box]]]:
        """(chunk, source, destination) and the boxes of each message made of the chosen flows, in that order."""
        found: dict[tuple[int, int, int], list[Box]] = {}
        for flow in np.flatnonzero(chosen):
            pair = int(self.flows.source[flow]), int(self.flows.destination[flow])
            for box in self._boxes(int(flow)):
                chunk = int(np.searchsorted(self.chunks, self.overlap.order[box.name], side="right")) - 1
                found.setdefault((chunk, *pair), []).append(box)
        for key in sorted(found):
            yield key, found[key]

    def _boxes(self, flow: int) -> Iterator[Box]:
        """The boxes of a flow; the first and the last may be parts of the block's."""
        block = self.overlap.blocks[int(self.flows.block[flow])]
        first, last = (int(edge[flow]) for edge in self._box_ranges)
        begin, end = int(self.flows.begin[flow]), int(self.flows.end[flow])
        for number in range(first, last):
            box, row = block.boxes[number], int(block.row_elements[number])
            start = int(block.ends[number]) - box.numel
            if begin <= start and start + box.numel <= end:
                yield box
                continue
            a, b = ((min(max(edge, start), start + box.numel) - start) // row for edge in (begin, end))
            yield Box(box.name, (box.start[0] + a, *box.start[1:]), (box.start[0] + b, *box.stop[1:]))


def plan(
    sources: Sequence[Layout], destinations: Sequence[Layout], devices: Devices, chunk_elements: int | None = None
) -> Plan:
    """Plan how the destinations get what they need.

    sources, destinations: the layout of each rank; ranks at the same place share one object. chunk_elements: what a
    destination receives at most in one chunk, unless a single tensor is larger; None: all in one. The same arguments
    give the same plan on every rank.

    Raises:
        ValueError: no source has some of the elements that are needed.
    """
    overlap = intersect(sources, destinations)
    return Plan(overlap, devices, assign(overlap, devices), _chunks(overlap, chunk_elements))


def _chunks(overlap: Overlap, limit: int | None) -> tuple[int, ...]:
    """Places in the order of tensors at which chunks begin, so that no destination needs more than ``limit`` in one."""
    if limit is None:
        return (0,)
    needs = np.zeros((len(overlap.order), len(overlap.destinations.layouts)), np.int64)
    for block in overlap.blocks:
        for box in block.boxes:
            needs[overlap.order[box.name], block.destination] += box.numel
    begins = [0]
    used = np.zeros(needs.shape[1], np.int64)
    for place, more in enumerate(needs):
        if place > begins[-1] and (used + more).max(initial=0) > limit:
            begins.append(place)
            used = np.zeros_like(used)
        used += more
    return tuple(begins)


def _message(key: tuple[int, int, int], boxes: Sequence[tuple[Box, list[Piece]]]) -> Message:
    chunk, source, destination = key
    slices: list[Slice] = []
    offset = 0
    for box, pieces in boxes:
        slices += [Slice(piece, offset) for piece in pieces]
        offset += box.numel
    return Message(source, destination, chunk, offset, tuple(slices))


def _inside(layout: Layout, box: Box) -> Piece:
    """Where a source has ``box``."""
    return next(piece.part(box) for piece in layout.by_name[box.name] if piece.box.intersect(box) == box)


def _all_inside(layout: Layout, box: Box) -> list[Piece]:
    """All places at which a destination has ``box``."""
    return [piece.part(box) for piece in layout.by_name[box.name] if piece.box.intersect(box) == box]
