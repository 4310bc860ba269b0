"""Which device each engine rank goes to, so that most of what it needs is there already.

Engines stay inside machines (or take whole ones); within these the devices are chosen. A TP-4 engine on a TP-8 trainer
finds an eighth of its weights in place on four neighbouring devices, and half of them on every second one.
"""

from __future__ import annotations

import numpy as np

from areal_mega.config.errors import UserError
from areal_mega.resharding.intersect import Integers, Overlap


def place_engines(overlap: Overlap, source_device: tuple[int, ...], engine: int, per_node: int) -> tuple[int, ...]:
    """The device of every engine rank, engine after engine.

    source_device: of each training rank; one rank to a device, at least as many devices as engine ranks. engine: ranks
    of one engine. per_node: devices of one machine.

    Raises:
        UserError: engines of this size do not fit into machines.
    """
    devices, wanted = len(source_device), len(overlap.destinations.of)
    if devices > per_node and per_node % engine and engine % per_node:
        raise UserError(f"engines of {engine} ranks neither divide nor fill machines of {per_node} devices")
    span = min(max(per_node, engine), devices)
    held = _held(overlap)
    rank_on = {device: rank for rank, device in enumerate(source_device)}
    placed: list[int] = []
    for first in range(0, min(wanted, devices), span):
        here = range(first, min(first + span, devices))
        sources = [overlap.sources.of[rank_on[device]] for device in here]
        wants = overlap.destinations.of[first : first + len(here)]
        gain = np.zeros((len(here), len(here)), np.int64)  # rows beyond the engines' are devices without one
        gain[: len(wants)] = held[np.ix_(wants, sources)]
        placed += [first + int(place) for place in match(gain)[: len(wants)]]
    return tuple(placed)


def _held(overlap: Overlap) -> Integers:
    """``[destinations, sources]``: elements of what each destination layout needs that each source layout has."""
    held = np.zeros((len(overlap.destinations.layouts), len(overlap.sources.layouts)), np.int64)
    for block in overlap.blocks:
        held[block.destination, list(overlap.holders[block.holders])] += block.numel
    return held


def match(gain: Integers) -> Integers:
    """The columns, each once, that give the rows of the square matrix ``gain`` the largest sum.

    The Hungarian method with shortest augmenting paths (Jonker and Volgenant, 1987), O(n^3).
    """
    cost = gain.max(initial=0) - gain
    size = len(cost)
    row_price, column_price = np.zeros(size + 1, np.int64), np.zeros(size + 1, np.int64)
    row_of = np.zeros(size + 1, np.int64)  # of each column; numbers count from 1, 0 is none
    far = np.iinfo(np.int64).max // 2
    for row in range(1, size + 1):
        distance = np.full(size + 1, far)
        previous = np.zeros(size + 1, np.int64)
        visited = np.zeros(size + 1, bool)
        row_of[0] = row
        column = 0
        while row_of[column]:
            visited[column] = True
            at = row_of[column]
            reduced = cost[at - 1] - row_price[at] - column_price[1:]
            shorter = ~visited[1:] & (reduced < distance[1:])
            distance[1:][shorter] = reduced[shorter]
            previous[1:][shorter] = column
            column = 1 + int(np.where(visited[1:], far, distance[1:]).argmin())
            step = distance[column]
            row_price[row_of[visited]] += step
            column_price[visited] -= step
            distance[~visited] -= step
        while column:
            row_of[column] = row_of[previous[column]]
            column = int(previous[column])
    columns = np.zeros(size, np.int64)
    columns[row_of[1:] - 1] = np.arange(size)
    return columns
