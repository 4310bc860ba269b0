"""What no plan can go below, counted from the layouts alone and without the planner."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from areal_mega.resharding.assign import Devices
from areal_mega.resharding.coordinates import Box, Layout


def lower_bound(
    sources: Sequence[Layout],
    destinations: Sequence[Layout],
    devices: Devices,
    weight: Callable[[str], int] = lambda name: 1,
) -> int:
    """Elements that must move between devices: what each destination needs, less what its device holds.

    weight: of an element of each Hugging Face tensor; its size, where bytes are to be counted.
    """
    on_device: dict[int, list[int]] = {}
    for rank, device in enumerate(devices.source):
        on_device.setdefault(device, []).append(rank)
    known: dict[tuple[int, ...], int] = {}
    total = 0
    for layout, device in zip(destinations, devices.destination, strict=True):
        held = [sources[rank] for rank in on_device.get(device, [])]
        key = (id(layout), *map(id, held))
        if key not in known:
            known[key] = _missing(layout, held, weight)
        total += known[key]
    return total


def _missing(layout: Layout, held: Sequence[Layout], weight: Callable[[str], int]) -> int:
    """Weight of the elements of ``layout``, each counted once, that are in none of ``held``."""
    missing = 0
    for name, pieces in layout.by_name.items():
        there = [piece.box for other in held for piece in other.by_name.get(name, ())]
        for piece in pieces:
            missing += weight(name) * sum(box.numel for box in _subtract(piece.box, there))
            there.append(piece.box)
    return missing


def _subtract(box: Box, others: Sequence[Box]) -> list[Box]:
    rest = [box]
    for other in others:
        rest = [part for piece in rest for part in piece.without(other)]
    return rest
