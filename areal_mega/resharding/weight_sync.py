"""Engines get the policy's new weights: the same few steps for every transport."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from areal_mega.config.options import ReshardingOptions
from areal_mega.resharding.checksums import wrapped
from areal_mega.resharding.deployment import Deployment
from areal_mega.resharding.engine_update import Engine, EngineUpdate, EngineUpdates, Order
from areal_mega.resharding.report import Spent, SyncReport
from areal_mega.resharding.transport import Sums, Transport, TransportError
from areal_mega.runtime.distributed import Topology

MEETINGS = 4  # attempts of engines and training ranks to connect, some of which were lost meanwhile


class WeightSyncError(RuntimeError):
    """A training rank cannot send; no engine can help that."""


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
        self._updates = 0
        self._filled = 0  # the update whose weights the transport remembers, all of them
        self._given: dict[int, tuple[int, int]] = {}  # number of an engine → its start, and the update that it got
        self._verified = False
        dtypes = transport.outgoing.dtypes
        self._lower_bound = deployment.lower_bound(lambda name: dtypes[name].itemsize)

    def send(self, version: int, engines: Sequence[int] | None = None) -> SyncReport:
        """Afterwards engines generate with, and report, ``version``.

        One that died, refused, or got other weights than were sent is among the report's failures. It is marked as
        failed then, unless it still has, and serves, its old weights.

        engines: their numbers; the main rank's count. None: all.

        Raises:
            WeightSyncError: a training rank cannot send. All engines have, and serve, their old weights then.
        """
        self._updates += 1
        started = time.perf_counter()
        chosen = list(range(len(self._engines)) if engines is None else engines)
        numbers: list[int] = self._topology.broadcast(chosen)
        verify = self._options.verify == "always" or (self._options.verify == "first" and not self._verified)
        transport, outgoing, spent = self._transport, self._transport.outgoing, Spent()
        with EngineUpdates({n: self._engines[n] for n in numbers if self._engines}, version) as updates:
            updates.run(lambda _, update: update.begin())
            self._connect(updates)
            delta = self._topology.broadcast(self._all_have_the_last(updates.alive))
            self._filled = 0
            for chunk in outgoing.chunks:
                self._bring(chunk, updates, spent, delta=delta)
            spent.load, _ = self._mail(updates)
            if verify:
                check = self._to_all({"order": "check", "plan": outgoing.plan_id})
                updates.start(lambda _, update: update.tell(check, writes=False))
                self._compare(self._mail(updates)[1], updates)
            updates.run(lambda _, update: update.commit())
            if updates.alive:
                self._filled = self._updates
                self._given |= {n: (self._engines[n].starts, self._updates) for n in updates.alive}
            failures = self._topology.broadcast(updates.failures)
        self._verified |= verify and not failures
        seconds = time.perf_counter() - started
        report = SyncReport.of(
            version,
            transport.name,
            self._topology.gather(spent),
            self._lower_bound,
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
        """Engines that were started since the last update learn of the plan, and all meet if the transport wants it."""
        new = [n for n in updates.alive if self._connected.get(n) != self._engines[n].starts]
        if new := self._topology.broadcast(new):
            self._tell(self._transport.connect_orders(new), updates)
            updates.wait()
            self._connected |= {n: self._engines[n].starts for n in new if self._engines}
        for _ in range(MEETINGS):
            orders = self._transport.meeting(self._starts(updates))
            if orders is None:
                return
            self._tell(orders, updates)
            self._transport.meet(updates.stuck)
            updates.wait()
        if self._transport.meeting(self._starts(updates)) is not None:
            for number in updates.alive:
                updates.fail(number, f"it and the training ranks did not find together in {MEETINGS} attempts")

    def _starts(self, updates: EngineUpdates) -> dict[int, int]:
        """On every rank: the engines that are alive, and their starts."""
        return self._topology.broadcast({n: self._engines[n].starts for n in updates.alive})

    def _tell(self, orders: Mapping[int, Order], updates: EngineUpdates) -> None:
        """Start giving all ranks' orders to the engine ranks that they are for."""
        by_rank = {rank: order for there in self._topology.gather(orders) for rank, order in there.items()}

        def step(number: int, update: EngineUpdate) -> None:
            ranks = self._deployment.ranks_of(number)
            if ranks.start in by_rank:
                update.tell([by_rank[rank] for rank in ranks], writes=False)

        updates.start(step)

    def _all_have_the_last(self, engines: Sequence[int]) -> bool:
        """Whether the difference to what was sent last is enough for all of these engines."""
        last = {n: (self._engines[n].starts, self._filled) for n in engines}
        return self._options.delta and all(self._given.get(n) == given for n, given in last.items())

    def _bring(self, chunk: int, updates: EngineUpdates, spent: Spent, *, delta: bool) -> None:
        """A chunk into all engines, or on the way there if they take it when it is whole."""
        transport, outgoing = self._transport, self._transport.outgoing
        last = chunk == outgoing.chunks[-1]
        order = {"order": "load", "plan": outgoing.plan_id, "chunk": chunk, "last": last}
        engines = self._topology.broadcast(updates.alive)
        while engines:
            if transport.streams:
                updates.start(self._loading(order | transport.load_order(engines), engines))
            lost = self._fill(chunk, engines, spent, delta=delta)
            # All have filled it, and the engines have taken the chunk before, whose half is filled next.
            updates.wait()
            for there in lost:
                updates.fail_all(there)
            if not transport.streams:
                updates.start(self._loading(order | transport.load_order(engines), engines))
                return
            # Who missed it gets it again, from those that are left; whole, as the ranks remember having sent it.
            engines, delta = self._topology.broadcast(transport.missed(updates.alive)), False

    def _loading(self, order: Order, engines: Sequence[int]) -> Callable[[int, EngineUpdate], None]:
        orders = self._to_all(order)

        def step(number: int, update: EngineUpdate) -> None:
            if number in engines:
                update.tell(orders, writes=True, last=order["last"])

        return step

    def _fill(self, chunk: int, engines: Sequence[int], spent: Spent, *, delta: bool) -> list[dict[int, str]]:
        """This rank's part of a chunk. Returns what all ranks say of lost engines."""
        trouble, lost = "", dict[int, str]()
        try:
            lost = self._transport.fill(chunk, engines, spent, delta=delta)
        except TransportError as error:
            trouble = str(error)
        there = self._topology.gather((trouble, lost))
        if troubles := [trouble for trouble, _ in there if trouble]:
            raise WeightSyncError("; ".join(troubles))
        return [lost for _, lost in there]

    def _mail(self, updates: EngineUpdates) -> tuple[float, Sums]:
        """What the workers report of the step that was started last, when they have done it."""
        updates.wait()
        return self._transport.read_mail(self._topology.broadcast(updates.alive))

    def _compare(self, found: Sums, updates: EngineUpdates) -> None:
        """Engines whose checksums are not those of what was sent have failed."""
        sent: Sums = {}
        there: Sums = {}
        outgoing = self._transport.outgoing
        for expected, reported in self._topology.gather((outgoing.expected_checksums(), found)):
            there |= reported
            for key, part in expected.items():
                sent[key] = wrapped(sent.get(key, 0) + part)
        for number in updates.alive:
            wrong = [
                f"{name} (rank {place})"
                for place, rank in enumerate(self._deployment.ranks_of(number))
                for name in outgoing.tensors(rank)
                if sent[outgoing.planned(rank), name] != there.get((rank, name))
            ]
            if wrong:
                names = ", ".join(wrong[:5])
                updates.fail(number, f"{len(wrong)} tensors are not what was sent, among them {names}")
