"""The receiving ends of the transports, in an engine's worker."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from areal_mega.resharding import files
from areal_mega.resharding.delta import WHOLE, decode
from areal_mega.resharding.peers import Peers, join, store_at
from areal_mega.resharding.relay import Chain, Part, parts
from areal_mega.resharding.shared_memory import attach
from areal_mega.resharding.slots import Copies, Place, Slot

# A mailbox is int64: the seconds of all loads since it was emptied, in nanoseconds; then checksums.
MAIL_NANOSECONDS, MAIL_CHECKSUMS = 0, 1

Header = list[int]


class Receiver(Protocol):
    """The receiving end of one transport."""

    mailbox: Tensor

    def meet(self, order: dict[str, Any]) -> None:
        """Join the trainers' process group."""

    def load(self, order: dict[str, Any]) -> bool:
        """A chunk into the parameters. Returns whether all of it has come."""

    def deliver(self) -> None:
        """The mailbox to the trainers; empty afterwards."""


class Parameters:
    """An engine rank's parameters, and which of their parts are in the buffer of each chunk."""

    def __init__(self, tensors: Mapping[str, Tensor], chunks: Sequence[Sequence[Place]], nbytes: int) -> None:
        self.device = next(iter(tensors.values())).device
        self._tensors, self._chunks, self.nbytes = tensors, chunks, nbytes
        self._unpacking = [Copies.between(tensors, chunk, nbytes) for chunk in chunks]
        self._packing: dict[int, Copies] = {}  # made when a delta comes

    def unpack(self, chunk: int, buffer: Tensor) -> None:
        """From the buffer into the parameters."""
        self._unpacking[chunk].unpack(buffer, self._tensors)

    def pack(self, chunk: int, buffer: Tensor) -> None:
        """From the parameters into the buffer, as the trainers packed it last."""
        if chunk not in self._packing:
            once = {place.offset: place for place in self._chunks[chunk]}  # a box in two places was sent once
            self._packing[chunk] = Copies.between(self._tensors, once.values(), self.nbytes)
        self._packing[chunk].pack(self._tensors, buffer)


class _Staging:
    """A buffer that the trainers fill, on this device; each chunk is in one of its halves."""

    def __init__(self, parameters: Parameters, order: dict[str, Any]) -> None:
        self._parameters = parameters
        self._buffer, self.mailbox = attach(order["staging"]), attach(order["mailbox"])

    def meet(self, order: dict[str, Any]) -> None:
        """Nobody: the buffers are there."""

    def load(self, order: dict[str, Any]) -> bool:
        begin = order["chunk"] % 2 * self._parameters.nbytes
        self._parameters.unpack(order["chunk"], self._buffer[begin : begin + self._parameters.nbytes])
        return True

    def deliver(self) -> None:
        """The trainers read it where it is, and empty it."""


class _Messages:
    """Messages that may be deltas, in a buffer of this rank's own."""

    def __init__(self, parameters: Parameters, order: dict[str, Any]) -> None:
        self._parameters, self._device = parameters, parameters.device
        self._buffer = torch.empty(order["chunk_bytes"], dtype=torch.uint8, device=self._device)
        self.mailbox = torch.zeros(MAIL_CHECKSUMS + len(order["tensors"]), dtype=torch.int64)
        self._slots: dict[int, list[Slot]] = {}
        for numbers in order["slots"]:
            slot = Slot(*numbers)
            self._slots.setdefault(slot.chunk, []).append(slot)

    def _part(self, slot: Slot) -> Tensor:
        return self._buffer[slot.offset : slot.offset + slot.nbytes]

    def _prepare(self, chunk: int, headers: Sequence[Header]) -> None:
        """Before messages with these headers come into the buffer: what they are the difference to."""
        if any(header[0] != WHOLE for header in headers):
            self._parameters.pack(chunk, self._buffer)


class _Stream(_Messages):
    """Messages from the trainers, or from the same rank of the engine before this one, which gets them from there."""

    def __init__(self, parameters: Parameters, order: dict[str, Any]) -> None:
        super().__init__(parameters, order)
        self._engine, self._number, self._destination = order["engine"], order["number"], order["destination"]
        self._store, self._plan = store_at(*order["store"]), order["plan"]
        self._group: Peers | None = None
        self._ranks: dict[int, int] = {}

    def meet(self, order: dict[str, Any]) -> None:
        self._group = None
        self._ranks = {engine: first + self._number for engine, first in order["first_ranks"]}
        self._group = join(self._store, order["name"], self._ranks[self._engine], order["world"], self._device)

    def load(self, order: dict[str, Any]) -> bool:
        if self._group is None:
            raise RuntimeError("this engine has not met the trainers")
        engines: list[int] = order["engines"]
        place = engines.index(self._engine)
        before, behind = engines[:place], engines[place + 1 :]
        chain = Chain(
            self._group,
            self._ranks[before[-1]] if before else None,
            self._ranks[behind[0]] if behind else None,
            self._device,
        )
        slots = self._slots.get(order["chunk"], [])
        headers = chain.headers([slot.source for slot in slots])
        self._prepare(order["chunk"], headers)
        coming: list[Part] = []
        deltas: list[tuple[Header, Tensor, Slot]] = []
        for slot, header in zip(slots, headers, strict=True):
            if header[0] == WHOLE:
                payload = self._part(slot)[: header[-1]]
            else:
                payload = torch.empty(header[-1], dtype=torch.uint8, device=self._device)
                deltas.append((header, payload, slot))
            coming += parts(payload, slot.source)
        chain.take(coming)
        if not chain.finish():
            self._store.set(f"{self._plan}/missed/{self._destination}", "")
            return False
        for header, payload, slot in deltas:
            decode(header, payload, self._part(slot))
        self._parameters.unpack(order["chunk"], self._buffer)
        return True

    def deliver(self) -> None:
        self._store.set(f"{self._plan}/mail/{self._destination}", json.dumps(self.mailbox.tolist()))
        self.mailbox.zero_()


class _Files(_Messages):
    """Messages that the trainers wrote into a folder; all engines read the same ones."""

    def __init__(self, parameters: Parameters, order: dict[str, Any]) -> None:
        super().__init__(parameters, order)
        self._folder = Path(order["folder"])
        self._planned, self._destination = order["planned"], order["destination"]
        if not self._folder.is_dir():
            raise RuntimeError(
                f"resharding.transport=disk: the trainers write into {self._folder}, which the engine does not have. "
                "Set resharding.folder to a folder that both have."
            )

    def meet(self, order: dict[str, Any]) -> None:
        """Nobody: the files are there."""

    def load(self, order: dict[str, Any]) -> bool:
        slots = self._slots.get(order["chunk"], [])
        names = [files.name(order["update"], slot.chunk, slot.source, self._planned) for slot in slots]
        messages = [files.read(self._folder / name) for name in names]
        self._prepare(order["chunk"], [header for header, _ in messages])
        for slot, (header, payload) in zip(slots, messages, strict=True):
            decode(header, payload.to(self._device), self._part(slot))
        self._parameters.unpack(order["chunk"], self._buffer)
        return True

    def deliver(self) -> None:
        files.write_mail(self._folder, self._destination, self.mailbox)
        self.mailbox.zero_()


RECEIVERS: dict[str, type[_Staging] | type[_Stream] | type[_Files]] = {
    "colocated": _Staging,
    "disaggregated": _Stream,
    "disk": _Files,
}
