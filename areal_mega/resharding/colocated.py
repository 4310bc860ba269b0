"""New weights for engines on the trainers' devices, through a staging buffer on each engine rank's device.

A training rank packs its slices straight into the buffers that it can reach; to others it sends one message, which the
rank on that device receives at its place in the buffer. The engine's worker unpacks from there into its parameters.
What is larger than a buffer goes in chunks through its two halves: while the engine unpacks one, the other is filled.
"""

from __future__ import annotations

import secrets
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from areal_mega.resharding.checksums import checksum, wrapped
from areal_mega.resharding.deployment import Deployment
from areal_mega.resharding.engine_update import Order
from areal_mega.resharding.loader import MAIL_CHECKSUMS, MAIL_NANOSECONDS, entry
from areal_mega.resharding.plan import Message
from areal_mega.resharding.report import Spent
from areal_mega.resharding.shared_memory import attach, describe, shared_bytes
from areal_mega.resharding.slots import Copies, Slot, places, slots
from areal_mega.runtime.distributed import Topology


@dataclass(frozen=True, eq=False)
class _Stage:
    """The staging of one engine rank, on the training rank that shares its device."""

    destination: int
    buffer: Tensor
    mailbox: Tensor
    chunk_bytes: int
    slots: list[Slot]
    tensors: list[str]


@dataclass(frozen=True, eq=False)
class _Parcel:
    """A message that this rank has to hand over in a chunk. buffer: the engine rank's, if it can be reached."""

    message: Message
    slot: Slot
    owner: int
    remote: bool
    copies: Copies
    buffer: Tensor | None


class ColocatedTransport:
    """Every training rank has one; all of them call the same methods in the same order.

    weights: this rank's tensors by Megatron name, always the same ones: they are read again at each update.
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
        self.plan_id = topology.broadcast(secrets.token_hex(8))
        self._dtypes = self._gather_dtypes()
        limit = buffer_bytes // max(dtype.itemsize for dtype in self._dtypes.values())
        self._plan = deployment.plan(None if deployment.largest <= limit else limit // 2)
        self.chunks = range(len(self._plan.chunks))
        self._hosts = hosts or topology.gather(socket.gethostname())
        self._stages = {stage.destination: stage for stage in self._make_stages()}
        self._parcels = self._make_parcels()
        self._incoming = list(self._find_incoming())
        self.lower_bound_bytes = deployment.lower_bound(lambda name: self._dtypes[name].itemsize)

    def _gather_dtypes(self) -> dict[str, torch.dtype]:
        """Of each Hugging Face tensor, as the trainers have it."""
        layout = self._deployment.sources[self._topology.rank]
        own = {piece.box.name: self._weights[piece.parameter].dtype for piece in layout.pieces}
        return {name: dtype for there in self._topology.gather(own) for name, dtype in there.items()}

    def _dtype_of(self, name: str) -> torch.dtype:
        return self._dtypes[name]

    def _make_stages(self) -> Iterator[_Stage]:
        halves = 1 if len(self.chunks) == 1 else 2
        for destination, device in enumerate(self._deployment.devices.destination):
            if device == self._topology.rank:
                there = slots(self._plan, destination, self._dtype_of)
                size = max(slot.offset + slot.nbytes for slot in there)
                buffer = shared_bytes(halves * size, self._topology.device)
                names = list(self._deployment.destinations[destination].by_name)
                mailbox = shared_bytes(8 * (MAIL_CHECKSUMS + len(names)), torch.device("cpu")).view(torch.int64)
                yield _Stage(destination, buffer, mailbox, size, there, names)

    def _make_parcels(self) -> list[list[_Parcel]]:
        """What this rank hands over, chunk by chunk."""
        t = self._topology
        offers = [stage for there in t.gather(self._offers()) for stage in there]
        stages = {destination: (owner, there, handles) for destination, owner, there, handles in offers}
        reachable = {d: attach(handles[t.rank]) for d, (_, _, handles) in stages.items() if t.rank in handles}
        reachable |= {destination: stage.buffer for destination, stage in self._stages.items()}
        shapes = self._deployment.sources[t.rank].shapes
        parcels: list[list[_Parcel]] = [[] for _ in self.chunks]
        for message in self._plan.sends(t.rank, local=True):
            owner, there, _ = stages[message.destination]
            slot = there[t.rank, message.chunk]
            copies = Copies.between(self._weights, places(message, shapes, self._dtype_of), slot.nbytes)
            remote = not self._plan.stays(message)
            buffer = reachable.get(message.destination)
            parcels[message.chunk].append(_Parcel(message, slot, owner, remote, copies, buffer))
        return parcels

    def _offers(self) -> list[tuple[int, int, dict[tuple[int, int], Slot], dict[int, str]]]:
        """For the other ranks: destination, this rank, slots by (source, chunk), and buffers by source."""
        t = self._topology
        found = []
        for destination, stage in self._stages.items():
            sources = {slot.source for slot in stage.slots} - {t.rank}
            mapped = [rank for rank in sorted(sources) if self._reaches(rank)]
            handles = {rank: describe(stage.buffer) for rank in mapped}
            found.append((destination, t.rank, {(s.source, s.chunk): s for s in stage.slots}, handles))
        return found

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

    def connect_orders(self) -> dict[int, Order]:
        """For the workers of this device's engine ranks: how they take part. Good for one connection."""
        orders: dict[int, Order] = {}
        for destination, stage in self._stages.items():
            shapes = self._deployment.destinations[destination].shapes
            offsets = {(slot.source, slot.chunk): slot.offset for slot in stage.slots}
            there: list[list[Any]] = [[] for _ in self.chunks]
            for message in self._plan.receives(destination, local=True):
                offset = offsets[message.source, message.chunk]
                there[message.chunk] += [entry(p) for p in places(message, shapes, self._dtype_of, offset)]
            orders[destination] = {
                "order": "connect",
                "plan": self.plan_id,
                "places": there,
                "tensors": stage.tensors,
                "shapes": dict(shapes),
                "dtypes": {name: str(self._dtypes[name]) for name in stage.tensors},
                "staging": describe(stage.buffer),
                "mailbox": describe(stage.mailbox),
                "chunk_bytes": stage.chunk_bytes,
            }
        return orders

    def load_order(self, chunk: int) -> Order:
        """For all workers: take a chunk."""
        return {"order": "load", "plan": self.plan_id, "chunk": chunk, "last": chunk == self.chunks[-1]}

    def fill(self, chunk: int, spent: Spent) -> None:
        """Bring this rank's part of a chunk into the buffers; `Topology.barrier` then says when all have done so."""
        started = time.perf_counter()
        moves = [
            dist.P2POp(dist.irecv, self._part(stage.buffer, slot), slot.source)
            for stage, slot in self._incoming
            if slot.chunk == chunk
        ]
        for parcel in self._parcels[chunk]:
            spent.bytes_moved += parcel.slot.nbytes * parcel.remote
            if parcel.buffer is None:
                message = torch.empty(parcel.slot.nbytes, dtype=torch.uint8, device=self._topology.device)
                moves.append(dist.P2POp(dist.isend, message, parcel.owner))
            else:
                message = self._part(parcel.buffer, parcel.slot)
            parcel.copies.pack(self._weights, message)
        packed = time.perf_counter()
        for work in dist.batch_isend_irecv(moves) if moves else []:
            work.wait()
        if self._topology.device.type == "cuda":
            torch.cuda.synchronize()
        spent.pack += packed - started
        spent.send += time.perf_counter() - packed

    def _part(self, buffer: Tensor, slot: Slot) -> Tensor:
        """A slot in an engine rank's buffer: in its only part, or in the half that is for the chunk."""
        halves = 1 if len(self.chunks) == 1 else 2
        begin = slot.chunk % halves * (buffer.numel() // halves) + slot.offset
        return buffer[begin : begin + slot.nbytes]

    def expected_checksums(self) -> dict[tuple[int, str], int]:
        """What this rank adds to the checksum of each tensor (engine rank, Hugging Face name)."""
        sums: dict[tuple[int, str], int] = {}
        for parcel in (parcel for chunk in self._parcels for parcel in chunk):
            for part in parcel.message.slices:
                key = parcel.message.destination, part.piece.box.name
                values = part.piece.view(self._weights[part.piece.parameter])
                sums[key] = wrapped(sums.get(key, 0) + checksum(values, part.piece.box))
        return sums

    def read_mail(self) -> tuple[float, dict[tuple[int, str], int]]:
        """Of this device's engine ranks: the longest time of loading, in seconds, and the checksums that the last
        check found; empties the boxes."""
        longest = 0.0
        sums: dict[tuple[int, str], int] = {}
        for destination, stage in self._stages.items():
            longest = max(longest, float(stage.mailbox[MAIL_NANOSECONDS]) / 1e9)
            found = stage.mailbox[MAIL_CHECKSUMS:].tolist()
            sums |= {(destination, name): total for name, total in zip(stage.tensors, found, strict=True)}
            stage.mailbox.zero_()
        return longest, sums
