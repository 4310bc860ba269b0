"""Engines get the policy's new weights: the same few steps for every transport."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

from areal_mega.config.options import ReshardingOptions
from areal_mega.resharding.checksums import wrapped
from areal_mega.resharding.deployment import Deployment
from areal_mega.resharding.engine_update import Engine, EngineUpdate, EngineUpdates, Order
from areal_mega.resharding.outgoing import Outgoing
from areal_mega.resharding.report import Spent, SyncReport
from areal_mega.runtime.distributed import Topology

Sums = dict[tuple[int, str], int]  # checksum by engine rank and Hugging Face tensor


class Transport(Protocol):
    """How bytes get from the training ranks to the engines' workers. Every training rank has one.

    streams: the workers take a chunk while it is sent; otherwise when all ranks have brought their parts of it.
    outgoing: what this rank sends.
    """

    name: str
    streams: bool
    outgoing: Outgoing

    def connect_orders(self, engines: Sequence[int]) -> dict[int, Order]:
        """For the workers of these engines that this rank is responsible for: how they take part, once."""

    def meet(self, engines: Sequence[int]) -> None:
        """This rank's part of the connection, while the workers have their orders."""

    def fill(self, chunk: int, engines: Sequence[int], spent: Spent) -> dict[int, str]:
        """This rank's part of a chunk, on its way. Returns the engines that were lost by it, and how it showed."""

    def read_mail(self, engines: Sequence[int]) -> tuple[float, Sums]:
        """Of the workers that this rank is responsible for: the longest time of loading, in seconds, and what the last
        check found."""


class WeightSync:
    """Every training rank has one and calls `send` at the same time.

    engines: on the main rank; the others have none. directory: where the reports are written; None: nowhere.
    """

    def __init__(
        self,
        topology: Topology,
        deployment: Deployment,
        transport: Transport,
        options: ReshardingOptions,
        engines: Sequence[Engine] = (),
        directory: Path | None = None,
    ) -> None:
        self._topology, self._deployment, self._transport = topology, deployment, transport
        self._options, self._engines, self._directory = options, engines, directory
        self._connected: dict[int, int] = {}  # number of an engine → its start that was connected
        self._verified = False

    def send(self, version: int, engines: Sequence[int] | None = None) -> SyncReport:
        """Afterwards engines generate with, and report, ``version``.

        One that died, refused, or got other weights than were sent is among the report's failures. It is marked as
        failed then, unless it still has, and serves, its old weights.

        engines: their numbers; the main rank's count. None: all.
        """
        started = time.perf_counter()
        chosen = list(range(len(self._engines)) if engines is None else engines)
        numbers: list[int] = self._topology.broadcast(chosen)
        verify = self._options.verify == "always" or (self._options.verify == "first" and not self._verified)
        transport, outgoing, spent = self._transport, self._transport.outgoing, Spent()
        with EngineUpdates({n: self._engines[n] for n in numbers if self._engines}, version) as updates:
            updates.run(lambda _, update: update.begin())
            self._connect(updates)
            for chunk in outgoing.chunks:
                last = chunk == outgoing.chunks[-1]
                order = {"order": "load", "plan": outgoing.plan_id, "chunk": chunk, "last": last}
                load = partial(_load, self._to_all(order), last)
                alive = self._topology.broadcast(updates.alive)
                if transport.streams:
                    updates.start(load)
                lost = transport.fill(chunk, alive, spent)
                # All have filled it, and the engines have taken the chunk before, whose half is filled next.
                updates.wait()
                for there in self._topology.gather(lost):
                    updates.fail_all(there)
                if not transport.streams:
                    updates.start(load)
            spent.load, _ = self._mail(updates)
            if verify:
                check = self._to_all({"order": "check", "plan": outgoing.plan_id})
                updates.start(lambda _, update: update.tell(check, writes=False))
                self._compare(self._mail(updates)[1], updates)
            updates.run(lambda _, update: update.commit())
            failures = self._topology.broadcast(updates.failures)
        self._verified |= verify and not failures
        seconds = time.perf_counter() - started
        report = SyncReport.of(
            version,
            transport.name,
            self._topology.gather(spent),
            outgoing.lower_bound_bytes,
            seconds,
            verified=verify and not failures,
            engines=numbers,
            failures=failures,
        )
        if self._directory and self._topology.is_main:
            report.append_to(self._directory)
        return report

    def _to_all(self, order: Order) -> list[Order]:
        return [order] * self._deployment.engines.tp

    def _connect(self, updates: EngineUpdates) -> None:
        """Engines that were started since the last update learn of the plan."""
        new = [n for n in updates.alive if self._connected.get(n) != self._engines[n].starts]
        if not (new := self._topology.broadcast(new)):
            return
        gathered = self._topology.gather(self._transport.connect_orders(new))
        orders = {rank: order for there in gathered for rank, order in there.items()}
        of = {number: [orders[rank] for rank in self._deployment.ranks_of(number)] for number in new}
        updates.start(lambda number, update: update.tell(of[number], writes=False) if number in of else None)
        self._transport.meet(new)
        updates.wait()
        self._connected |= {n: self._engines[n].starts for n in new if self._engines}

    def _mail(self, updates: EngineUpdates) -> tuple[float, Sums]:
        """What the workers report of the step that was started last, when they have done it."""
        if self._transport.streams:
            mail = self._transport.read_mail(updates.alive)
            updates.wait()
            return mail
        updates.wait()
        self._topology.barrier()
        return self._transport.read_mail(updates.alive)

    def _compare(self, found: Sums, updates: EngineUpdates) -> None:
        """Engines whose checksums are not those of what was sent have failed."""
        sent: Sums = {}
        there: Sums = {}
        for expected, reported in self._topology.gather((self._transport.outgoing.expected_checksums(), found)):
            there |= reported
            for key, part in expected.items():
                sent[key] = wrapped(sent.get(key, 0) + part)
        for number in updates.alive:
            ranks = self._deployment.ranks_of(number)
            wrong = sorted(
                key for key in sent.keys() | there.keys() if key[0] in ranks and sent.get(key) != there.get(key)
            )
            if wrong:
                names = ", ".join(f"{name} (rank {rank - ranks.start})" for rank, name in wrong[:5])
                updates.fail(number, f"{len(wrong)} tensors are not what was sent, among them {names}")


def _load(orders: Sequence[Order], last: bool, _: int, update: EngineUpdate) -> None:
    update.tell(orders, writes=True, last=last)
