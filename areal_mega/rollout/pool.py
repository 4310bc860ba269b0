"""The engines requests can go to: which are alive, how busy each is, and which conversation belongs to which.

A prefix is computed once where all its continuations go to the same engine, so whatever has one key stays together:
all samples of a group, all turns of their conversations. Beyond that the least loaded engine is taken.

An engine that does not answer is taken out. It is back when its owner says so (`Revive`), at an address that may be a
new one. A pool belongs to one event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Hashable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from areal_mega.rollout.server import EngineError

CHECK_SECONDS = 5.0


@dataclass(frozen=True)
class EngineAddress:
    """Where an engine is reached, and the keys it takes: one for requests, one to abort them."""

    url: str
    api_key: str
    admin_key: str


class EngineLostError(RuntimeError):
    """An engine did not answer; what it was asked is to be asked again."""


# Returns when the engine at that address, or its successor at the address returned, serves the current weights again;
# raises EngineError when it never will.
Revive = Callable[[EngineAddress], Awaitable[EngineAddress]]
# Raises EngineLostError when the engine does not answer.
Probe = Callable[[EngineAddress], Awaitable[None]]


@dataclass(eq=False)
class _Member:
    address: EngineAddress
    alive: bool = True
    load: int = 0
    tokens: int = 0
    busy_since: float = 0.0
    busy_seconds: float = 0.0
    losses: int = 0
    failure: EngineError | None = None


@dataclass(eq=False)
class Lease:
    """One request on an engine. The holder says how many tokens came of it."""

    address: EngineAddress
    tokens: int = field(default=0)


class EnginePool:
    """Routes requests over engines.

    revive: brings back an engine that was lost. wait_seconds: how long a request waits for an engine when none is
    alive. away: those of the addresses that are lost already; with any, the event loop must run.
    """

    def __init__(
        self,
        addresses: Sequence[EngineAddress],
        revive: Revive,
        wait_seconds: float,
        away: Collection[EngineAddress] = (),
    ) -> None:
        if not addresses:
            raise ValueError("a pool needs at least one engine")
        self._members = [_Member(address) for address in addresses]
        self._revive, self._wait_seconds = revive, wait_seconds
        self._bound: dict[Hashable, _Member] = {}
        self._changed = asyncio.Event()
        self._revivals: set[asyncio.Task[None]] = set()
        for member in self._members:
            if member.address in away:
                self._wait_for(member)

    @property
    def alive(self) -> list[EngineAddress]:
        return [member.address for member in self._members if member.alive]

    @asynccontextmanager
    async def lease(self, key: Hashable | None = None, sequences: int = 1) -> AsyncIterator[Lease]:
        """An engine for one request of so many sequences, the same for the same key while it lives.

        An `EngineLostError` raised inside takes the engine out.

        Raises:
            EngineError: there is no engine any more, or none came back in time.
        """
        member = await self._choose(key)
        lease, losses = Lease(member.address), member.losses
        if not member.load:
            member.busy_since = time.monotonic()
        member.load += sequences
        try:
            yield lease
        except EngineLostError:
            self._take_out(member, losses)
            raise
        finally:
            member.load -= sequences
            member.tokens += lease.tokens
            if not member.load:
                member.busy_seconds += time.monotonic() - member.busy_since

    def forget(self, key: Hashable) -> None:
        """Nothing more comes with this key."""
        self._bound.pop(key, None)

    async def watch(self, probe: Probe, every: float = CHECK_SECONDS) -> None:
        """Look after the engines until cancelled: one that is not asked anything must not die unseen."""
        while True:
            await asyncio.sleep(every)
            await asyncio.gather(*(self._check(member, probe) for member in self._members if member.alive))

    async def close(self) -> None:
        """End what still tries to bring engines back."""
        for task in self._revivals:
            task.cancel()
        await asyncio.gather(*self._revivals, return_exceptions=True)

    def metrics(self) -> dict[str, float]:
        """By engine: open sequences, tokens, tokens per second while it had work, and times it was lost."""
        metrics: dict[str, float] = {"engines/alive": float(len(self.alive))}
        for index, member in enumerate(self._members):
            now = time.monotonic() - member.busy_since if member.load else 0.0
            seconds = member.busy_seconds + now
            metrics |= {
                f"engines/{index}/open": float(member.load),
                f"engines/{index}/tokens": float(member.tokens),
                f"engines/{index}/tokens_per_second": member.tokens / seconds if seconds else 0.0,
                f"engines/{index}/lost": float(member.losses),
            }
        return metrics

    async def _choose(self, key: Hashable | None) -> _Member:
        bound = self._bound.get(key) if key is not None else None
        if bound is None or not bound.alive:
            bound = min(await self._living(), key=lambda member: member.load)
            if key is not None:
                self._bound[key] = bound
        return bound

    async def _living(self) -> list[_Member]:
        deadline = time.monotonic() + self._wait_seconds
        while not (living := [member for member in self._members if member.alive]):
            failures = [member.failure for member in self._members if member.failure]
            if len(failures) == len(self._members):
                raise failures[-1]
            self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), deadline - time.monotonic())
            except TimeoutError:
                raise EngineError(
                    f"No engine was there for {self._wait_seconds:g} seconds (rollout.engine_wait)."
                ) from None
        return living

    def _take_out(self, member: _Member, losses: int) -> None:
        """Once for each loss: all requests of a dead engine report it, some of them when it is back already.

        losses: how often it had been lost when the one who reports began.
        """
        if member.losses == losses:
            member.losses += 1
            self._wait_for(member)

    def _wait_for(self, member: _Member) -> None:
        member.alive = False
        task = asyncio.create_task(self._bring_back(member))
        self._revivals.add(task)
        task.add_done_callback(self._revivals.discard)

    async def _bring_back(self, member: _Member) -> None:
        try:
            member.address = await self._revive(member.address)
            member.alive = True
        except Exception as error:  # the requests that wait for it must hear of it
            member.failure = error if isinstance(error, EngineError) else EngineError(str(error))
        finally:
            self._changed.set()

    async def _check(self, member: _Member, probe: Probe) -> None:
        losses = member.losses
        try:
            await probe(member.address)
        except EngineLostError:
            self._take_out(member, losses)
