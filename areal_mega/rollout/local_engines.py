"""The engines this process started, and starts again when they die.

An engine that is started again has the weights of its model folder. It gets a new address, with new keys, and the
address is given out only when the engine has the current weights: so nothing can be generated with old ones.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from areal_mega.config.errors import UserError
from areal_mega.rollout.pool import EngineAddress, EnginePool
from areal_mega.rollout.server import EngineError, SGLangServer

LOGGER = logging.getLogger(__name__)

# Short, as Ctrl-C must not wait for an engine that hangs.
ABORT_SECONDS = 5.0
# A connection was lost, but the engine lives: what is under way there is given a moment.
_REST_SECONDS = 0.5
_POLL_SECONDS = 0.1

# Gives weights to the engines of these numbers; returns those that it failed for, and why.
Send = Callable[[Sequence[int]], Mapping[int, str]]


@dataclass
class _State:
    """address: where the engine serves, or served last. restarts: since then; above 0 it is away. gone: for good."""

    address: EngineAddress
    restarts: int = 0
    gone: EngineError | None = None


class LocalEngines:
    """Servers and their addresses; any thread may use it.

    restarts: times in a row, without getting to serve in between, that an engine is started again.
    """

    def __init__(self, servers: Sequence[SGLangServer], restarts: int = 0) -> None:
        self.servers, self._restarts = list(servers), restarts
        self._states = [_State(address_of(server)) for server in self.servers]
        self._number = {state.address: number for number, state in enumerate(self._states)}
        self._lock = threading.RLock()
        self._closed = False

    @property
    def addresses(self) -> list[EngineAddress]:
        """Where each serves, or served last."""
        return [state.address for state in self._states]

    def pool(self, wait_seconds: float) -> EnginePool:
        """All of them, for the event loop that runs; see `EnginePool`."""
        away = [state.address for number, state in enumerate(self._states) if not self._serves(number)]
        return EnginePool(self.addresses, self.revive, wait_seconds, away)

    def wait_ready(self) -> None:
        """Return when all answer that are not being started again.

        Raises:
            UserError: one did not start.
            EngineError: all died and cannot be started again.
        """
        for number, server in enumerate(self.servers):
            if self._serves(number):
                try:
                    server.wait_ready()
                except EngineError as error:
                    self._lost(number, error)
        gone = [state.gone for state in self._states if state.gone]
        if len(gone) == len(self._states):
            raise gone[-1]

    async def revive(self, address: EngineAddress) -> EngineAddress:
        """Where the engine of this address, or its successor, serves the current weights again.

        Raises:
            EngineError: it cannot be started again; with the last words of its log.
        """
        number = self._number[address]
        state = self._states[number]
        while state.address == address and self._serves(number):
            if await asyncio.to_thread(self._answers, number):
                await asyncio.sleep(_REST_SECONDS)
                return address
            await asyncio.sleep(_POLL_SECONDS)
        while not self._serves(number):
            if state.gone:
                raise state.gone
            await asyncio.sleep(_POLL_SECONDS)
        return state.address

    def returned(self) -> list[int]:
        """The engines that were started again, answer, and wait for weights."""
        with self._lock:
            return [number for number in range(len(self.servers)) if self._is_back(number)]

    def give_weights(self, send: Send, to: Sequence[int] | None = None) -> None:
        """Have weights sent; afterwards every engine that got them serves, and the others are started again.

        to: None is all engines that serve or wait for weights.
        """
        with self._lock:  # who notices a loss meanwhile must not start an engine in the middle of its update
            if to is None:
                to = [n for n in range(len(self.servers)) if self._serves(n) or self._is_back(n)]
            failures = send(to)
            for number in to:
                if number in failures:
                    self._lost(number, EngineError(failures[number]))
                else:
                    state = self._states[number]
                    state.address, state.restarts = address_of(self.servers[number]), 0
                    self._number[state.address] = number

    def metrics(self) -> dict[str, float]:
        """Restarts of all engines since the run began."""
        return {"engines/restarts_total": float(sum(server.starts - 1 for server in self.servers))}

    def abort_all(self) -> None:
        """End everything that is under way."""
        for number, server in enumerate(self.servers):
            if self._serves(number):
                with suppress(EngineError):
                    server.order("/abort_request", {"abort_all": True}, timeout=ABORT_SECONDS)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            for server in self.servers:
                server.close()

    def _serves(self, number: int) -> bool:
        state = self._states[number]
        return state.restarts == 0 and state.gone is None

    def _answers(self, number: int) -> bool:
        """Whether an engine that serves answers; one that is dead is started again."""
        with self._lock:
            try:
                self.servers[number].check()
            except EngineError as error:
                if self._serves(number):
                    self._lost(number, error)
                return False
        return self.servers[number].answers()

    def _is_back(self, number: int) -> bool:
        if not self._states[number].restarts or self._states[number].gone:
            return False
        try:
            return self.servers[number].is_ready()
        except (EngineError, UserError) as error:
            self._lost(number, error)
            return False

    def _lost(self, number: int, reason: Exception) -> None:
        with self._lock:
            state = self._states[number]
            if self._closed or state.restarts >= self._restarts:
                state.gone = EngineError(str(reason))
                return
            state.restarts += 1
            LOGGER.warning("engine %d is started again: %s", number, str(reason).splitlines()[0])
            try:
                self.servers[number].restart()
            except UserError as error:  # its port is taken
                state.gone = EngineError(str(error))


def address_of(server: SGLangServer) -> EngineAddress:
    return EngineAddress(server.url, server.api_key, server.admin_key)
