"""Which layouts and devices a run has: its training ranks, its engines' ranks, and the plan between them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from areal_mega.resharding.assign import Devices
from areal_mega.resharding.coordinates import Layout
from areal_mega.resharding.intersect import intersect
from areal_mega.resharding.layouts import MegatronPlace, SGLangGrid, megatron_layout, sglang_layout
from areal_mega.resharding.lower_bound import lower_bound
from areal_mega.resharding.placement import place_engines
from areal_mega.resharding.plan import Plan, plan


@dataclass(frozen=True, eq=False)
class Deployment:
    """Made by `deploy`. engines: sizes and number of the engines. devices: where all ranks are."""

    sources: tuple[Layout, ...]
    destinations: tuple[Layout, ...]
    devices: Devices
    engines: SGLangGrid

    def plan(self, chunk_elements: int | None = None) -> Plan:
        """How the engines get their weights. chunk_elements: as for `plan.plan`."""
        return plan(self.sources, self.destinations, self.devices, chunk_elements)

    def lower_bound(self, element_bytes: Callable[[str], int]) -> int:
        """Bytes that any plan must move. element_bytes: size of an element of each Hugging Face tensor."""
        return lower_bound(self.sources, self.destinations, self.devices, element_bytes)

    @property
    def one_engine(self) -> Deployment:
        """The same with the first engine only. On devices of their own all engines need the same."""
        tp = self.engines.tp
        devices = replace(self.devices, destination=self.devices.destination[:tp])
        return Deployment(self.sources, self.destinations[:tp], devices, replace(self.engines, count=1))

    @property
    def largest(self) -> int:
        """Elements of the engine rank that needs most."""
        return max(layout.numel for layout in self.destinations)

    def ranks_of(self, engine: int) -> range:
        """The destinations that are ranks of an engine."""
        return range(engine * self.engines.tp, (engine + 1) * self.engines.tp)

    def local_devices(self, engine: int) -> list[int]:
        """The devices of an engine's ranks, counted in their machine."""
        return [self.devices.destination[rank] % self.devices.per_node for rank in self.ranks_of(engine)]


def deploy(
    hf: Any, places: Sequence[MegatronPlace], engines: SGLangGrid, *, colocated: bool, per_node: int
) -> Deployment:
    """The deployment of a model. The same arguments give the same one on every rank.

    hf: Hugging Face config. places: of each training rank. colocated: the engines' ranks are on the trainers' devices,
    so that most of what they need is there already; else on devices of their own, behind these. per_node: devices of
    one machine.

    Raises:
        UserError: the layouts do not divide the model, or engines of this size do not fit into machines.
    """
    made = {place: megatron_layout(hf, place) for place in dict.fromkeys(places)}
    sources = tuple(made[place] for place in places)
    destinations = tuple(engines.layouts(lambda place: sglang_layout(hf, place)))
    training = tuple(range(len(sources)))
    if not colocated:
        first = len(sources)
        devices = Devices(training, tuple(range(first, first + len(destinations))), per_node)
        return Deployment(sources, destinations, devices, engines)
    placed = place_engines(intersect(sources, destinations), training, engines.tp, per_node)
    return Deployment(sources, destinations, Devices(training, placed, per_node), engines)
