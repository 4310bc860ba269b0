"""Runs inside every SGLang worker: the receiving end of the transports. Its orders come as JSON from `EngineUpdate`.

connect: a new plan, and where everything goes; nothing is written yet.
meet: the trainers and the other engines, in a new process group.
load: one chunk into the live parameters.
check: the checksums of the live parameters.

What it reports, time and checksums, goes through a mailbox: after the last chunk and after a check.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from areal_mega.resharding.checksums import checksum, wrapped
from areal_mega.resharding.coordinates import Box
from areal_mega.resharding.receivers import MAIL_CHECKSUMS, MAIL_NANOSECONDS, RECEIVERS, Parameters, Receiver
from areal_mega.resharding.slots import Place


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
        parameters = Parameters(self._parameters, chunks, order["chunk_bytes"])
        self._receiver: Receiver = RECEIVERS[order["transport"]](parameters, order)

    def meet(self, order: dict[str, Any]) -> None:
        self._receiver.meet(order)

    def load(self, order: dict[str, Any]) -> None:
        started = time.perf_counter_ns()
        complete = self._receiver.load(order)
        if complete and order["last"]:
            # Weights that SGLang derives from others; it leaves this out in sessions in which something was loaded.
            getattr(self._model, "post_load_weights", lambda: None)()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self._receiver.mailbox[MAIL_NANOSECONDS] += time.perf_counter_ns() - started
        if complete and order["last"]:
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


def entry(place: Place) -> list[Any]:
    """A place as JSON has it in a connect order."""
    return [place.parameter, place.start, place.stop, place.offset, place.box.name, place.box.start, place.box.stop]


def _place(entry: list[Any]) -> Place:
    parameter, start, stop, offset, *box = entry
    return Place(parameter, tuple(start), tuple(stop), offset, Box(box[0], tuple(box[1]), tuple(box[2])))
