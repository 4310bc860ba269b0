"""New weights for engines on the trainers' devices, through a staging buffer on each engine rank's device.

A training rank packs its slices straight into the buffers that it can reach; to others it sends one message, which the
rank on that device receives at its place in the buffer. The engine's worker unpacks from there into its parameters.
What is larger than a buffer goes in chunks through its two halves: while the engine unpacks one, the other is filled.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from areal_mega.resharding.deployment import Deployment
from areal_mega.resharding.engine_update import Order
from areal_mega.resharding.outgoing import Outgoing
from areal_mega.resharding.receivers import MAIL_CHECKSUMS, MAIL_NANOSECONDS
from areal_mega.resharding.report import Spent
from areal_mega.resharding.shared_memory import attach, describe, shared_bytes
from areal_mega.resharding.slots import Slot
from areal_mega.resharding.transport import Sums, Transport
from areal_mega.runtime.distributed import Topology


@dataclass(frozen=True, eq=False)
class _Stage:
    """The staging of one engine rank, on the training rank that shares its device."""

    destination: int
    buffer: Tensor
    mailbox: Tensor
    slots: list[Slot]


@dataclass(frozen=True, eq=False)
class _Target:
    """An engine rank's staging, as a source sees it: the rank that has it, this rank's slots in it by chunk, and the
    buffer, if it can be reached."""

    owner: int
    slots: dict[int, Slot]
    buffer: Tensor | None


class ColocatedTransport(Transport):
    """weights: this rank's tensors by Megatron name, always the same ones: they are read again at each update.
    buffer_bytes: of each engine rank's buffer, unless a single tensor takes more. hosts: machine of each training rank;
    None: by their host names.
    """

    name = "colocated"

    def __init__(
        self,
        topology: Topology,
        deployment: Deployment,
        weights: Mapping[str, Tensor],
        buffer_bytes: int,
        hosts: Sequence[Any] | None = None,
    ) -> None:
        self._topology, self._deployment, self._weights = topology, deployment, weights
        self.outgoing = Outgoing(topology, deployment, weights, buffer_bytes)
        self._hosts = hosts or topology.gather(socket.gethostname())
        self._stages = {stage.destination: stage for stage in self._make_stages()}
        self._targets = self._find_targets()
        self._incoming = list(self._find_incoming())

    @property
    def _halves(self) -> int:
        return 1 if len(self.outgoing.chunks) == 1 else 2

    def _make_stages(self) -> Iterator[_Stage]:
        for destination, device in enumerate(self._deployment.devices.destination):
            if device == self._topology.rank:
                there = self.outgoing.slots(destination)
                size = max(slot.offset + slot.nbytes for slot in there)
                buffer = shared_bytes(self._halves * size, self._topology.device)
                numbers = MAIL_CHECKSUMS + len(self.outgoing.tensors(destination))
                mailbox = shared_bytes(8 * numbers, torch.device("cpu")).view(torch.int64)
                yield _Stage(destination, buffer, mailbox, there)

    def _find_targets(self) -> dict[int, _Target]:
        """The engine ranks that this rank sends to."""
        t = self._topology
        targets: dict[int, _Target] = {}
        for offers in t.gather(self._offers()):
            for destination, (owner, there, handles) in offers.items():
                mine = {slot.chunk: slot for slot in there if slot.source == t.rank}
                if mine:
                    own = self._stages.get(destination)
                    buffer = own.buffer if own else attach(handles[t.rank]) if t.rank in handles else None
                    targets[destination] = _Target(owner, mine, buffer)
        return targets

    def _offers(self) -> dict[int, tuple[int, list[Slot], dict[int, str]]]:
        """For the other ranks, by engine rank: this rank, all slots, and the buffer for each source that can map it."""
        t = self._topology
        offers = {}
        for destination, stage in self._stages.items():
            sources = sorted({slot.source for slot in stage.slots} - {t.rank})
            handles = {rank: describe(stage.buffer) for rank in sources if self._reaches(rank)}
            offers[destination] = (t.rank, stage.slots, handles)
        return offers

    def _reaches(self, rank: int) -> bool:
        """Whether a training rank and this one can share a buffer."""
        here = self._hosts[self._topology.rank]
        return self._topology.device.type == "cpu" and self._hosts[rank] == here

    def _find_incoming(self) -> Iterator[tuple[_Stage, Slot]]:
        """What other ranks send for engine ranks on this device, in the order in which they send it."""
        for stage in self._stages.values():
            for slot in stage.slots:
                if slot.source != self._topology.rank and not self._reaches(slot.source):
                    yield stage, slot

    def connect_orders(self, engines: Sequence[int]) -> dict[int, Order]:
        """For the workers of this device's engine ranks: how they take part. Good for one connection."""
        return {
            destination: {
                **self.outgoing.connect_order(destination, stage.slots),
                "transport": self.name,
                "staging": describe(stage.buffer),
                "mailbox": describe(stage.mailbox),
            }
            for destination, stage in self._stages.items()
        }

    def fill(self, chunk: int, engines: Sequence[int], spent: Spent, *, delta: bool) -> dict[int, str]:
        """Bring this rank's part of a chunk into the buffers; `Topology.barrier` then says when all have done so."""
        started = time.perf_counter()
        moves = [
            dist.P2POp(dist.irecv, self._part(stage.buffer, slot), slot.source)
            for stage, slot in self._incoming
            if slot.chunk == chunk
        ]
        for parcel in self.outgoing.parcels[chunk]:
            target = self._targets[parcel.message.destination]
            if parcel.remote:
                spent.bytes_moved += parcel.nbytes
                spent.bytes_out += parcel.nbytes
                spent.bytes_full += parcel.nbytes
            if target.buffer is None:
                message = torch.empty(parcel.nbytes, dtype=torch.uint8, device=self._topology.device)
                moves.append(dist.P2POp(dist.isend, message, target.owner))
            else:
                message = self._part(target.buffer, target.slots[chunk])
            parcel.copies.pack(self._weights, message)
        packed = time.perf_counter()
        for work in dist.batch_isend_irecv(moves) if moves else []:
            work.wait()
        if self._topology.device.type == "cuda":
            torch.cuda.synchronize()
        spent.pack += packed - started
        spent.send += time.perf_counter() - packed
        return {}

    def _part(self, buffer: Tensor, slot: Slot) -> Tensor:
        """A slot in an engine rank's buffer: in its only part, or in the half that is for the chunk."""
        begin = slot.chunk % self._halves * (buffer.numel() // self._halves) + slot.offset
        return buffer[begin : begin + slot.nbytes]

    def read_mail(self, engines: Sequence[int]) -> tuple[float, Sums]:
        """Of this device's engine ranks: the longest time of loading, in seconds, and the checksums that the last
        check found; empties the boxes."""
        longest = 0.0
        sums: Sums = {}
        for destination, stage in self._stages.items():
            longest = max(longest, float(stage.mailbox[MAIL_NANOSECONDS]) / 1e9)
            found = stage.mailbox[MAIL_CHECKSUMS:].tolist()
            names = self.outgoing.tensors(destination)
            sums |= {(destination, name): total for name, total in zip(names, found, strict=True)}
            stage.mailbox.zero_()
        return longest, sums
