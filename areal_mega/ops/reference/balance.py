"""Differencing and first fit on lists, close to their definitions."""

from __future__ import annotations

import torch
from torch import Tensor

# A sum and the indices in it; a state has one for each part, largest first.
Subset = tuple[int, list[int]]


def balance(costs: Tensor, parts: int, equal_counts: bool) -> Tensor:
    """See `areal_mega.ops.balance`; the arguments have been checked."""
    numbers = costs.tolist()
    order = _largest_first(numbers)
    size = parts if equal_counts else 1
    states: list[list[Subset]] = [
        [(numbers[i], [i]) for i in order[start : start + size]] + [(0, []) for _ in range(parts - size)]
        for start in range(0, len(order), size)
    ]
    while len(states) > 1:
        states.sort(key=lambda state: state[0][0] - state[-1][0], reverse=True)  # stable: older states first
        first, second, *states = states
        united = [(a + b, x + y) for (a, x), (b, y) in zip(first, reversed(second), strict=True)]
        states.append(sorted(united, key=lambda subset: (-subset[0], subset[1])))
    part_of = torch.zeros(len(numbers), dtype=torch.int64)
    for state in states:
        for part, (_, members) in enumerate(state):
            part_of[members] = part
    return part_of


def first_fit(costs: Tensor, budget: int) -> Tensor:
    """See `areal_mega.ops.balance`; the arguments have been checked."""
    numbers = costs.tolist()
    room: list[int] = []
    bin_of = torch.zeros(len(numbers), dtype=torch.int64)
    for i in _largest_first(numbers):
        chosen = next((b for b, free in enumerate(room) if free >= numbers[i]), len(room))
        if chosen == len(room):
            room.append(budget)
        room[chosen] -= numbers[i]
        bin_of[i] = chosen
    return bin_of


def _largest_first(numbers: list[int]) -> list[int]:
    return sorted(range(len(numbers)), key=lambda i: (-numbers[i], i))
