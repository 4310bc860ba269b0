"""Which sequences go together: equal parts, and bins under a budget. Both run on the CPU, whatever the device."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from areal_mega import ops
from areal_mega.bench.case import Case, Contender, Outputs, Plan, Shapes, Skip, Work, own_contenders
from areal_mega.bench.cases.packed import ragged_lengths

_PARTS, _BUDGET, _MEAN = 64, 65536, 2048
# Above it the methods in Python take minutes, or a part and length an object each that do not fit into memory.
_MOST_IN_PYTHON = 2**14


def balance(shapes: Shapes, device: torch.device) -> list[Plan]:
    """The output is the part of each sequence; the error, how far the largest part's sum is above the mean."""
    return _plans("balance", _balance, shapes, device)


def first_fit(shapes: Shapes, device: torch.device) -> list[Plan]:
    """The output is the bin of each sequence; the error, the bins beyond the total over the budget, relative to it."""
    return _plans("first_fit", _first_fit, shapes, device)


def _plans(name: str, build: Callable[..., Case], shapes: Shapes, device: torch.device) -> list[Plan]:
    if device.type != "cpu":
        return []
    sizes = [512] if shapes == "small" else [_MOST_IN_PYTHON, 1_000_000]
    into = f"parts={_PARTS}" if name == "balance" else f"budget={_BUDGET}"
    return [
        Plan(name, "forward", f"S={size} {into}", torch.int64, device, partial(build, size, device, shapes))
        for size in sizes
    ]


def _balance(size: int, device: torch.device, shapes: Shapes, peers: bool) -> Case:
    lengths = ragged_lengths(_MEAN * size, size)
    contenders, skipped = own_contenders(
        lambda backend: (ops.balance(lengths, _PARTS, backend=backend),), device, shapes
    )
    numbers = lengths.tolist()
    contenders.append(Contender("greedy, heapq", lambda: (_greedy(numbers),)))
    name = "Karmarkar-Karp, heapq"
    if peers and size <= _MOST_IN_PYTHON:
        contenders.append(Contender(name, lambda: (_karmarkar_karp(numbers),)))
    elif peers:
        skipped.append(Skip(name, f"holds {_PARTS} lists for each of {size} sequences: not enough memory"))

    def error(outputs: Outputs) -> float:
        (part_of,) = outputs
        assert part_of is not None
        sums = torch.zeros(_PARTS, dtype=torch.int64).index_add_(0, part_of, lengths)
        return float(sums.max() / (lengths.sum() / _PARTS) - 1)

    return Case(contenders, skipped, (lengths,), Work(), error)


def _first_fit(size: int, device: torch.device, shapes: Shapes, peers: bool) -> Case:
    lengths = ragged_lengths(_MEAN * size, size).clamp(max=_BUDGET)
    contenders, skipped = own_contenders(
        lambda backend: (ops.first_fit(lengths, _BUDGET, backend=backend),), device, shapes
    )
    numbers = lengths.tolist()
    if size <= _MOST_IN_PYTHON:
        contenders.append(Contender("first fit decreasing, Python", lambda: (_first_fit_decreasing(numbers),)))
    else:
        skipped.append(Skip("first fit decreasing, Python", f"looks at every bin for each of {size} sequences: hours"))

    def error(outputs: Outputs) -> float:
        (bin_of,) = outputs
        assert bin_of is not None
        return float((bin_of.max() + 1) / (lengths.sum() / _BUDGET).ceil() - 1)

    return Case(contenders, skipped, (lengths,), Work(), error)


def _longest_first(numbers: list[int]) -> list[int]:
    return sorted(range(len(numbers)), key=lambda i: -numbers[i])


def _greedy(numbers: list[int]) -> Tensor:
    """The longest first, each to the part with the least."""
    part_of = [0] * len(numbers)
    heap = [(0, part) for part in range(_PARTS)]
    for i in _longest_first(numbers):
        total, part = heap[0]
        heapq.heapreplace(heap, (total + numbers[i], part))
        part_of[i] = part
    return torch.tensor(part_of)


def _karmarkar_karp(numbers: list[int]) -> Tensor:
    """Differencing with a heap of partitions, the widest spread first (as in verl)."""
    heap: list[tuple[int, int, list[tuple[int, list[int]]]]] = []
    for i, number in enumerate(numbers):
        parts: list[tuple[int, list[int]]] = [(number, [i]), *((0, []) for _ in range(_PARTS - 1))]
        heap.append((-number, i, parts))
    heapq.heapify(heap)
    for age in range(len(numbers), 2 * len(numbers) - 1):
        (_, _, first), (_, _, second) = heapq.heappop(heap), heapq.heappop(heap)
        merged = [(a + b, x + y) for (a, x), (b, y) in zip(first, reversed(second), strict=True)]
        merged.sort(key=lambda part: -part[0])
        heapq.heappush(heap, (merged[-1][0] - merged[0][0], age, merged))
    part_of = torch.zeros(len(numbers), dtype=torch.int64)
    for part, (_, members) in enumerate(heap[0][2]):
        part_of[members] = part
    return part_of


def _first_fit_decreasing(numbers: list[int]) -> Tensor:
    room: list[int] = []
    bin_of = [0] * len(numbers)
    for i in _longest_first(numbers):
        chosen = next((b for b, free in enumerate(room) if free >= numbers[i]), len(room))
        if chosen == len(room):
            room.append(_BUDGET)
        room[chosen] -= numbers[i]
        bin_of[i] = chosen
    return torch.tensor(bin_of)
