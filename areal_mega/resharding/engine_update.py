"""A weight update of an SGLang engine (0.5.23) as a transaction: it is on the old version, on the new one, or dead."""

from __future__ import annotations

import json
import pickle
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Protocol

import torch

from areal_mega.config.errors import UserError
from areal_mega.config.options import RolloutOptions

# What SGLang calls in its workers with the orders of an update; servers are started with it as custom_weight_loader.
LOADER = "areal_mega.resharding.loader.load"

Order = dict[str, Any]


class Engine(Protocol):
    """What an update needs of a running engine."""

    options: RolloutOptions

    @property
    def starts(self) -> int:
        """How often it was started: after each time it has the weights of its model folder again."""

    def order(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """POST to an administrative endpoint; raises RuntimeError when the engine refuses or is dead, UserError when it
        did not start."""

    def weight_version(self) -> int:
        """The version of the weights it generates with."""

    def mark_failed(self, reason: str) -> None:
        """Refuse all further use."""


class EngineUpdate:
    """From `begin` to `commit`. Requests that are under way are held meanwhile, and go on with the new weights.

    Every method raises RuntimeError if the engine refuses or is dead. After any failure call `abandon`.
    """

    def __init__(self, engine: Engine, version: int) -> None:
        self._engine, self._version = engine, version
        self._open, self._touched = False, False

    def begin(self) -> None:
        """Hold what is under way and open SGLang's update session."""
        self._engine.order("/pause_generation", {"mode": "retract"})
        self._engine.order("/begin_weight_update")
        self._open = True

    def tell(self, orders: Sequence[Order], *, writes: bool, last: bool = False) -> None:
        """Give every rank of the engine an order for `loader`, and wait until all have done it.

        orders: one for each rank. writes: whether it changes weights. last: the weights are whole afterwards; the
        engine takes the new version's number and forgets the prefixes that the old weights computed.
        """
        self._touched |= writes
        body: dict[str, Any] = {
            "serialized_named_tensors": [_payload(order) for order in orders],
            "load_format": LOADER,
            "flush_cache": last,
        }
        if last:
            body["weight_version"] = str(self._version)
        self._engine.order("/update_weights_from_tensor", body)

    def commit(self) -> None:
        """Close the session and go on generating, with the new weights."""
        self._engine.order("/end_weight_update")
        reported = self._engine.weight_version()
        if reported != self._version:
            raise RuntimeError(f"the engine reports weight version {reported}, expected {self._version}")
        self._engine.order("/continue_generation")

    def abandon(self, reason: BaseException | str) -> None:
        """Back to the old weights, if none has been overwritten yet and the engine answers; otherwise it is dead."""
        if not self._touched:
            with suppress(RuntimeError, UserError):
                if self._open:
                    self._engine.order("/end_weight_update")
                self._engine.order("/continue_generation")
                return
        self._engine.mark_failed(f"The engine's weights are unknown since update {self._version} failed: {reason}")


def _payload(order: Order) -> str:
    data = torch.frombuffer(bytearray(json.dumps(order).encode()), dtype=torch.uint8)
    return b64encode(pickle.dumps([("areal_mega", data)])).decode()


class EngineUpdates:
    """One update of several engines at the same time. One that fails is left out of what follows.

    engines: by number; on ranks that have none, all methods do nothing. It is a context manager: engines whose update
    ended in an exception are abandoned.
    """

    def __init__(self, engines: Mapping[int, Engine], version: int) -> None:
        self.failures: dict[int, str] = {}
        self._updates = {number: EngineUpdate(engine, version) for number, engine in engines.items()}
        self._threads = ThreadPoolExecutor(max(1, len(engines)), "engine-update")
        self._running: dict[int, Future[None]] = {}

    @property
    def alive(self) -> list[int]:
        """The engines that have not failed."""
        return [number for number in self._updates if number not in self.failures]

    def start(self, step: Callable[[int, EngineUpdate], None]) -> None:
        """Begin a step, given an engine's number and its update, on all engines, when the one before has ended."""
        self.wait()
        self._running = {n: self._threads.submit(step, n, self._updates[n]) for n in self.alive}

    def stuck(self) -> bool:
        """Whether an engine has failed in the step that is under way."""
        return any(future.done() and future.exception() for future in self._running.values())

    def wait(self) -> None:
        """Until the step that was started last has ended everywhere."""
        for number, future in self._running.items():
            try:
                future.result()
            except RuntimeError as error:
                self.fail(number, str(error))
        self._running = {}

    def run(self, step: Callable[[int, EngineUpdate], None]) -> None:
        """`start` and `wait`."""
        self.start(step)
        self.wait()

    def fail(self, number: int, reason: str) -> None:
        """Give an engine up."""
        self.failures[number] = reason
        self._updates[number].abandon(reason)

    def fail_all(self, reasons: Mapping[int, str]) -> None:
        """Give up those of the engines that have not failed yet."""
        for number in set(reasons) & set(self.alive):
            self.fail(number, reasons[number])

    def __enter__(self) -> EngineUpdates:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._threads.shutdown()
        if error is not None:
            for number in self.alive:
                self._updates[number].abandon(error)
