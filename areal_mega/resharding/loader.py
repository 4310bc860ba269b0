"""Runs inside every SGLang worker: the receiving end of the transports. Its orders come as JSON from `EngineUpdate`.

connect: a new plan, its buffers or peers, and where everything goes; nothing is written yet.
load: one chunk into the live parameters.
check: the checksums of the live parameters.

What it reports, time and checksums, goes through a mailbox: after the last chunk and after a check.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from areal_mega.resharding.checksums import checksum, wrapped
from areal_mega.resharding.coordinates import Box
from areal_mega.resharding.peers import join
from areal_mega.resharding.shared_memory import attach
from areal_mega.resharding.slots import Copies, Place

# A mailbox is int64: the seconds of all loads since it was emptied, in nanoseconds; then checksums.
MAIL_NANOSECONDS, MAIL_CHECKSUMS = 0, 1


class Receiver(Protocol):
    """The receiving end of one transport."""

    mailbox: Tensor

    def load(self, chunk: int) -> None:
        """A chunk into the parameters."""

    def deliver(self) -> None:
        """The mailbox to the trainers; empty afterwards."""


def load(model: nn.Module, named_tensors: Sequence[tuple[str, Tensor]]) -> None:
    """SGLang's hook: carry out the orders in ``named_tensors``."""
    for _, data in named_tensors:
        order = json.loads(bytes(data.cpu().numpy()))
        if order["order"] == "connect":
            _Connection.current = None  # its buffers go before the new ones come
            _Connection.current = _Connection(model, order)
            continue
        connection = _Connection.current
        if connection is None or connection.plan != order["plan"]:
            raise RuntimeError(f"this engine was not connected to plan {order['plan']}")
        getattr(connection, order["order"])(order)


class _Connection:
    """What one plan gives this rank; the trainers send under one plan at a time."""

    current: _Connection | None = None

    def __init__(self, model: nn.Module, order: dict[str, Any]) -> None:
        self.plan: str = order["plan"]
        self._model = model
        self._parameters: dict[str, Tensor] = {name: p.data for name, p in model.named_parameters()}
        chunks = [[_place(entry) for entry in chunk] for chunk in order["places"]]
        self._places = [place for chunk in chunks for place in chunk]
        self._tensors: list[str] = order["tensors"]
        self._check(order["dtypes"], order["shapes"])
        copies = [Copies.between(self._parameters, chunk, order["chunk_bytes"]) for chunk in chunks]
        receivers: dict[str, type[_Staging] | type[_Stream]] = {"colocated": _Staging, "disaggregated": _Stream}
        self._receiver: Receiver = receivers[order["transport"]](self._parameters, copies, order)

    def load(self, order: dict[str, Any]) -> None:
        started = time.perf_counter_ns()
        self._receiver.load(order["chunk"])
        if order["last"]:
            # Weights that SGLang derives from others; it leaves this out in sessions in which something was loaded.
            getattr(self._model, "post_load_weights", lambda: None)()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self._receiver.mailbox[MAIL_NANOSECONDS] += time.perf_counter_ns() - started
        if order["last"]:
            self._receiver.deliver()

    def check(self, order: dict[str, Any]) -> None:
        sums = dict.fromkeys(self._tensors, 0)
        seen: set[Box] = set()
        for place in self._places:
            if place.box not in seen:
                seen.add(place.box)
                inside = tuple(map(slice, place.start, place.stop))
                values = self._parameters[place.parameter][inside].reshape(place.box.shape)
                sums[place.box.name] += checksum(values, place.box)
        self._receiver.mailbox[MAIL_CHECKSUMS:] = torch.tensor([wrapped(total) for total in sums.values()])
        self._receiver.deliver()

    def _check(self, dtypes: dict[str, str], shapes: dict[str, list[int]]) -> None:
        """Refuses, before anything is written, what cannot be right."""
        written = {place.parameter for place in self._places}
        if different := written ^ set(self._parameters):
            raise RuntimeError(f"the plan and SGLang's model do not have the same parameters: {sorted(different)}")
        for place in self._places:
            parameter = self._parameters[place.parameter]
            expected = dtypes[place.box.name], shapes[place.parameter]
            if (str(parameter.dtype), list(parameter.shape)) != expected or not parameter.is_contiguous():
                raise RuntimeError(
                    f"SGLang has {place.parameter} as {parameter.dtype} of shape {list(parameter.shape)} with strides "
                    f"{parameter.stride()}: the plan writes contiguous {expected[0]} of shape {expected[1]}"
                )


class _Staging:
    """A buffer that the trainers fill, on this device; each chunk is in one of its halves."""

    def __init__(self, parameters: dict[str, Tensor], copies: list[Copies], order: dict[str, Any]) -> None:
        self._parameters, self._copies = parameters, copies
        self._buffer, self.mailbox = attach(order["staging"]), attach(order["mailbox"])
        self._nbytes: int = order["chunk_bytes"]

    def load(self, chunk: int) -> None:
        begin = chunk % 2 * self._nbytes
        self._copies[chunk].unpack(self._buffer[begin : begin + self._nbytes], self._parameters)

    def deliver(self) -> None:
        """The trainers read it where it is, and empty it."""


class _Stream:
    """A buffer that messages of the trainers are received in."""

    def __init__(self, parameters: dict[str, Tensor], copies: list[Copies], order: dict[str, Any]) -> None:
        self._parameters, self._copies = parameters, copies
        device = next(iter(parameters.values())).device
        self._buffer = torch.empty(order["chunk_bytes"], dtype=torch.uint8, device=device)
        self.mailbox = torch.zeros(MAIL_CHECKSUMS + len(order["tensors"]), dtype=torch.int64)
        self._slots: list[list[int]] = order["slots"]
        host, port, name = order["meeting"]
        self._group = join(host, port, name, order["rank"], order["world"], device)

    def load(self, chunk: int) -> None:
        receiving = []
        for source, number, offset, nbytes in self._slots:
            if number == chunk:
                receiving.append(self._group.recv([self._buffer[offset : offset + nbytes]], source, chunk))
        for work in receiving:
            work.wait()
        self._copies[chunk].unpack(self._buffer, self._parameters)

    def deliver(self) -> None:
        # Not waited for: the trainers take it when this order has been answered.
        self._mail = self.mailbox.to(self._buffer.device, copy=True)
        self._delivery = self._group.send([self._mail], 0, len(self._copies))
        self.mailbox.zero_()


def entry(place: Place) -> list[Any]:
    """A place as JSON has it in a connect order."""
    return [place.parameter, place.start, place.stop, place.offset, place.box.name, place.box.start, place.box.stop]


def _place(entry: list[Any]) -> Place:
    parameter, start, stop, offset, *box = entry
    return Place(parameter, tuple(start), tuple(stop), offset, Box(box[0], tuple(box[1]), tuple(box[2])))
