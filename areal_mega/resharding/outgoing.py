"""A training rank's side of the plan, which is the same for every way of transport."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from areal_mega.resharding.checksums import checksum, wrapped
from areal_mega.resharding.delta import Encoded, encode, whole
from areal_mega.resharding.deployment import Deployment
from areal_mega.resharding.engine_update import Order
from areal_mega.resharding.loader import entry
from areal_mega.resharding.plan import Message
from areal_mega.resharding.slots import Copies, Slot, nbytes, places, slots
from areal_mega.runtime.distributed import Topology


@dataclass(frozen=True, eq=False)
class Parcel:
    """A message that this rank hands over. remote: it leaves the device. word: bytes of its smallest elements."""

    message: Message
    nbytes: int
    remote: bool
    copies: Copies
    word: int


class Outgoing:
    """What this rank sends, chunk by chunk, and what the engines' workers must know to take it.

    deployment: of what is planned: all engines, or one whose bytes the others get too. weights: this rank's tensors by
    Megatron name. buffer_bytes: what an engine rank's buffer may take, unless a single tensor is larger. All ranks make
    one together.
    """

    def __init__(
        self, topology: Topology, deployment: Deployment, weights: Mapping[str, Tensor], buffer_bytes: int
    ) -> None:
        self._deployment, self._weights, self._device = deployment, weights, topology.device
        self._last: dict[Parcel, Tensor] = {}  # what was encoded last, if it is remembered
        self.plan_id: str = topology.broadcast(secrets.token_hex(8))
        layout = deployment.sources[topology.rank]
        own = {piece.box.name: weights[piece.parameter].dtype for piece in layout.pieces}
        self.dtypes = {name: dtype for there in topology.gather(own) for name, dtype in there.items()}
        limit = buffer_bytes // max(dtype.itemsize for dtype in self.dtypes.values())
        self.plan = deployment.plan(None if deployment.largest <= limit else limit // 2)
        self.chunks = range(len(self.plan.chunks))
        self.parcels: list[list[Parcel]] = [[] for _ in self.chunks]
        for message in self.plan.sends(topology.rank, local=True):
            size = nbytes(message, self.dtype_of)
            copies = Copies.between(weights, places(message, layout.shapes, self.dtype_of), size)
            word = min(self.dtypes[part.piece.box.name].itemsize for part in message.slices)
            self.parcels[message.chunk].append(Parcel(message, size, not self.plan.stays(message), copies, word))

    def dtype_of(self, name: str) -> torch.dtype:
        """Of a Hugging Face tensor on its way: as the trainers have it."""
        return self.dtypes[name]

    def planned(self, rank: int) -> int:
        """The destination of the plan whose bytes an engine rank gets; itself, unless only one engine is planned."""
        return rank % len(self._deployment.destinations)

    def encoded(self, parcel: Parcel, *, remember: bool, delta: bool) -> Encoded:
        """A parcel as bytes of its own. remember: keep them, for the next delta. delta: the difference to those that
        were kept last, which whoever gets it must have."""
        message = torch.empty(parcel.nbytes, dtype=torch.uint8, device=self._device)
        parcel.copies.pack(self._weights, message)
        last = self._last.get(parcel)
        if remember:
            self._last[parcel] = message
        return encode(message, last, parcel.word) if delta and last is not None else whole(message, parcel.word)

    def slots(self, rank: int) -> list[Slot]:
        """Where the messages of an engine rank lie in its buffer."""
        return slots(self.plan, self.planned(rank), self.dtype_of)

    def tensors(self, rank: int) -> list[str]:
        """The Hugging Face tensors of which an engine rank has parts."""
        return list(self._deployment.destinations[self.planned(rank)].by_name)

    def connect_order(self, rank: int, there: list[Slot]) -> Order:
        """What every way of transport tells a worker: which bytes of its buffer go where."""
        destination = self.planned(rank)
        shapes = self._deployment.destinations[destination].shapes
        offsets = {(slot.source, slot.chunk): slot.offset for slot in there}
        entries: list[list[Any]] = [[] for _ in self.chunks]
        for message in self.plan.receives(destination, local=True):
            offset = offsets[message.source, message.chunk]
            entries[message.chunk] += [entry(p) for p in places(message, shapes, self.dtype_of, offset)]
        names = self.tensors(destination)
        return {
            "order": "connect",
            "plan": self.plan_id,
            "places": entries,
            "tensors": names,
            "shapes": dict(shapes),
            "dtypes": {name: str(self.dtypes[name]) for name in names},
            "chunk_bytes": max(slot.offset + slot.nbytes for slot in there),
        }

    def expected_checksums(self) -> dict[tuple[int, str], int]:
        """What this rank adds to the checksum of each tensor (planned destination, Hugging Face name)."""
        sums: dict[tuple[int, str], int] = {}
        for parcel in (parcel for chunk in self.parcels for parcel in chunk):
            for part in parcel.message.slices:
                key = parcel.message.destination, part.piece.box.name
                values = part.piece.view(self._weights[part.piece.parameter])
                sums[key] = wrapped(sums.get(key, 0) + checksum(values, part.piece.box))
        return sums
