"""Who sends what: local copies first, then sources on the same node, then the sources that send least.

The elements that the same sources could send are laid end to end, destination after destination, and divided among
these sources where they fill up: so the loads are as even as the layouts allow, nearly every destination has only one
source for them, and what is larger than a source's share is striped over several.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from areal_mega.resharding.intersect import Block, Integers, Overlap

SMALL = 0.002  # of the mean load: a set of sources may then be used unevenly, where that saves messages


@dataclass(frozen=True)
class Devices:
    """Where the ranks are. source, destination: device of each rank; ranks on one device share its memory.
    per_node: devices ``n * per_node`` and the following ones are in one machine."""

    source: tuple[int, ...]
    destination: tuple[int, ...]
    per_node: int = 8

    def node(self, device: int) -> int:
        return device // self.per_node


@dataclass(frozen=True, eq=False)
class Flows:
    """Elements ``begin[i]`` to ``end[i]`` of block ``block[i]`` go from rank ``source[i]`` to rank ``destination[i]``.

    A flow of elements that are on the destination's own device already is local.
    """

    source: Integers
    destination: Integers
    block: Integers
    begin: Integers
    end: Integers
    local: np.ndarray

    @property
    def numel(self) -> Integers:
        return self.end - self.begin


_Demand = tuple[int, int]  # destination rank, block
_Flow = tuple[int, int, int, int, int, bool]


def assign(overlap: Overlap, devices: Devices) -> Flows:
    """Choose a source for every element that a destination needs."""
    flows: list[_Flow] = []
    candidates, demands = _local_copies_and_candidates(overlap, devices, flows)
    sizes = {key: sum(overlap.blocks[block].numel for _, block in demands[key]) for key in demands}
    load = np.zeros(len(devices.source), np.int64)
    senders: list[set[int]] = [set() for _ in devices.destination]
    small = SMALL * sum(sizes.values()) / max(1, len(load))
    # Those with the least choice first: the others then fill the valleys that these leave.
    for key in sorted(demands, key=lambda key: (len(candidates[key]), -sizes[key])):
        ranks = np.array(candidates[key])
        if sizes[key] / len(ranks) < small:
            sent = list(_to_old_acquaintances(demands[key], candidates[key], overlap, load, senders))
        else:
            sent = list(_tape(demands[key], ranks, overlap, load))
        for source, destination, _, begin, end, _ in sent:
            load[source] += end - begin
            senders[destination].add(source)
        flows += sent
    table = np.array(flows, np.int64).reshape(-1, 6)
    return Flows(
        source=table[:, 0],
        destination=table[:, 1],
        block=table[:, 2],
        begin=table[:, 3],
        end=table[:, 4],
        local=table[:, 5].astype(bool),
    )


def _local_copies_and_candidates(
    overlap: Overlap, devices: Devices, flows: list[_Flow]
) -> tuple[dict[tuple, tuple[int, ...]], dict[tuple, list[_Demand]]]:
    """Appends local copies to ``flows``; what remains, by the sources that could send it."""
    holders = [_Holders(members, overlap, devices) for members in overlap.holders]
    candidates: dict[tuple, tuple[int, ...]] = {}
    demands: dict[tuple, list[_Demand]] = {}
    for rank, layout in enumerate(overlap.destinations.of):
        device = devices.destination[rank]
        node = devices.node(device)
        for number in overlap.of_destination[layout]:
            block = overlap.blocks[number]
            there = holders[block.holders]
            if device in there.on_device:
                flows.append((there.on_device[device], rank, number, 0, block.numel, True))
                continue
            near = there.on_node.get(node)
            key = (block.holders, node if near else None)
            candidates[key] = tuple(near or there.ranks)
            demands.setdefault(key, []).append((rank, number))
    return candidates, demands


class _Holders:
    """The ranks of a set of source layouts, by device and by node."""

    def __init__(self, members: tuple[int, ...], overlap: Overlap, devices: Devices) -> None:
        self.ranks = sorted(rank for layout in members for rank in overlap.sources.ranks[layout])
        self.on_device: dict[int, int] = {}
        self.on_node: dict[int, list[int]] = {}
        for rank in self.ranks:
            device = devices.source[rank]
            self.on_device.setdefault(device, rank)
            self.on_node.setdefault(devices.node(device), []).append(rank)


def _to_old_acquaintances(
    demands: Sequence[_Demand], ranks: tuple[int, ...], overlap: Overlap, load: Integers, senders: list[set[int]]
) -> list[_Flow]:
    """Each demand whole from the source that sends least, among those that send to its destination anyway."""
    flows: list[_Flow] = []
    choice = frozenset(ranks)
    for destination, number in demands:
        known = choice & senders[destination] or choice
        source = min(known, key=lambda rank: (load[rank], rank))
        flows.append((source, destination, number, 0, overlap.blocks[number].numel, False))
    return flows


def _tape(demands: Sequence[_Demand], ranks: Integers, overlap: Overlap, load: Integers) -> list[_Flow]:
    """All demands end to end, cut where the sources' shares end."""
    blocks = [overlap.blocks[number] for _, number in demands]
    ends = np.cumsum([block.numel for block in blocks])
    share = fill(load[ranks], int(ends[-1]))
    cuts = [_whole_rows(int(position), blocks, ends) for position in np.cumsum(share)[:-1]]
    edges = [0, *np.maximum.accumulate(np.array(cuts, np.int64)).tolist(), int(ends[-1])]
    flows: list[_Flow] = []
    number = 0
    for source, begin, end in zip(ranks.tolist(), edges[:-1], edges[1:], strict=True):
        while begin < end:
            first = int(ends[number]) - blocks[number].numel
            stop = min(end, int(ends[number]))
            destination, block = demands[number]
            flows.append((source, destination, block, begin - first, stop - first, False))
            begin = stop
            number += begin == ends[number]
    return flows


def _whole_rows(position: int, blocks: Sequence[Block], ends: Integers) -> int:
    """The nearest place to ``position`` where the tape can be cut: between two rows of a box."""
    number = int(np.searchsorted(ends, position, side="right"))
    if number == len(blocks):
        return position
    block = blocks[number]
    first = int(ends[number]) - block.numel
    box = int(np.searchsorted(block.ends, position - first, side="right"))
    start = first + (int(block.ends[box - 1]) if box else 0)
    row = int(block.row_elements[box])
    return start + round((position - start) / row) * row


def fill(load: Integers, amount: int) -> Integers:
    """What each source gets of ``amount``, so that the lowest loads rise to a common level, as water would.

    load: ``[n]`` before. Returns ``[n]``, with the sum ``amount``.
    """
    order = np.argsort(load, kind="stable")
    level = load[order]
    below = np.concatenate([[0], np.cumsum(level)[:-1]])
    to_reach = level * np.arange(len(level)) - below  # what it takes to raise all lower ones to each level
    count = int(np.searchsorted(to_reach, amount, side="right"))
    surface, extra = divmod(amount + int(level[:count].sum()), count)
    shares = np.zeros_like(load)
    shares[order[:count]] = surface - level[:count]
    shares[order[:extra]] += 1
    return shares
