"""New weights for engines on devices of their own, from process to process.

All training ranks and the workers of all engines are in one process group. In a chunk every training rank packs what a
worker of the first engine gets from it into one message; the worker receives its messages side by side in one buffer,
passes them on to the same rank of the next engine (`relay`), and unpacks from there into its parameters. So one copy
leaves the trainers, however many engines there are. When an engine was started anew, or one is left out, a new group is
made.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict

import torch.distributed as dist
from torch import Tensor

from areal_mega.resharding import relay
from areal_mega.resharding.deployment import Deployment
from areal_mega.resharding.engine_update import Order
from areal_mega.resharding.outgoing import Outgoing
from areal_mega.resharding.peers import TIMEOUT, Peers, convene, join, store_at
from areal_mega.resharding.receivers import MAIL_CHECKSUMS, MAIL_NANOSECONDS
from areal_mega.resharding.report import Spent
from areal_mega.resharding.transport import Sums, Transport
from areal_mega.runtime.distributed import Topology


class DisaggregatedTransport(Transport):
    """weights: this rank's tensors by Megatron name, always the same ones: they are read again at each update.
    buffer_bytes: of each engine rank's buffer, unless a single tensor takes more. remember: keep what was sent, for
    deltas.
    """

    name = "disaggregated"
    streams = True

    def __init__(
        self,
        topology: Topology,
        deployment: Deployment,
        weights: Mapping[str, Tensor],
        buffer_bytes: int,
        *,
        remember: bool = False,
    ) -> None:
        self._topology, self._deployment, self._remember = topology, deployment, remember
        self.outgoing = Outgoing(topology, deployment.one_engine, weights, buffer_bytes)
        hosts = set(topology.gather(socket.gethostname()))
        held: dist.TCPStore | None = None
        if topology.is_main:
            host = "127.0.0.1" if len(hosts) == 1 else socket.gethostbyname(socket.gethostname())
            held = dist.TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=TIMEOUT)
        self._address: tuple[str, int] = topology.broadcast((held.host, held.port) if held else None)
        self._store: dist.Store = held or store_at(*self._address)
        self._group: Peers | None = None
        self._members: dict[int, int] = {}  # engines of the group → their start
        self._meetings = 0

    def connect_orders(self, engines: Sequence[int]) -> dict[int, Order]:
        """The main rank's, for the workers of these engines: what they will get."""
        return {
            destination: {
                **self.outgoing.connect_order(destination, there := self.outgoing.slots(destination)),
                "transport": self.name,
                "slots": [list(asdict(slot).values()) for slot in there],
                "store": self._address,
                "engine": engine,
                "number": number,
                "destination": destination,
            }
            for engine in (engines if self._topology.is_main else ())
            for number, destination in enumerate(self._deployment.ranks_of(engine))
        }

    def meeting(self, engines: Mapping[int, int]) -> dict[int, Order] | None:
        """Orders to join a new group, unless exactly these are in the one that there is."""
        if (self._group is not None and self._members == engines) or not engines:
            return None
        self._group, self._members = None, dict(engines)
        self._meetings += 1
        order = {
            "order": "meet",
            "plan": self.outgoing.plan_id,
            "name": self._meeting_name,
            "first_ranks": [(engine, self._first_rank(engine)) for engine in engines],
            "world": self._world,
        }
        ranks = [rank for engine in engines for rank in self._deployment.ranks_of(engine)]
        return dict.fromkeys(ranks, order) if self._topology.is_main else {}

    @property
    def _meeting_name(self) -> str:
        return f"{self.outgoing.plan_id}/meeting/{self._meetings}"

    @property
    def _world(self) -> int:
        return self._topology.world + len(self._members) * self._deployment.engines.tp

    def _first_rank(self, engine: int) -> int:
        """The rank in the group of an engine's first worker."""
        return self._topology.world + list(self._members).index(engine) * self._deployment.engines.tp

    def meet(self, hopeless: Callable[[], bool]) -> None:
        """Join the group of the last `meeting`."""
        if self._topology.is_main:
            convene(self._store, self._meeting_name, self._world, hopeless)
        self._group = join(self._store, self._meeting_name, self._topology.rank, self._world, self._topology.device)
        if not all(self._topology.gather(self._group is not None)):
            self._group = None

    def load_order(self, engines: Sequence[int]) -> Order:
        """The engines in the order in which they pass it on."""
        return {"engines": list(engines)}

    def fill(self, chunk: int, engines: Sequence[int], spent: Spent, *, delta: bool) -> dict[int, str]:
        """Send this rank's part of a chunk to the workers of the first of these engines, which have the order to take
        it and pass it on.

        Returns that engine if it was lost, and how it showed.
        """
        started = time.perf_counter()
        sending: list[relay.Sent] = []
        lost: dict[int, str] = {}
        try:
            for parcel in self.outgoing.parcels[chunk]:
                encoded = self.outgoing.encoded(parcel, remember=self._remember, delta=delta)
                spent.count(encoded, parcel.nbytes, len(engines), delta=delta)
                to = self._first_rank(engines[0]) + parcel.message.destination
                sending += relay.send(self._group, encoded, self._topology.rank, to)
            packed = time.perf_counter()
            for work, _ in sending:
                work.wait(TIMEOUT)
        except RuntimeError as error:
            lost[engines[0]] = str(error)
            packed = time.perf_counter()
        spent.pack += packed - started
        spent.send += time.perf_counter() - packed
        return lost

    def missed(self, engines: Sequence[int]) -> list[int]:
        """On the main rank, the engines one of whose workers has said so."""
        return [
            engine
            for engine in (engines if self._topology.is_main else ())
            if [rank for rank in self._deployment.ranks_of(engine) if self._take(f"missed/{rank}") is not None]
        ]

    def read_mail(self, engines: Sequence[int]) -> tuple[float, Sums]:
        """On the main rank, of the workers of these engines: the longest time of loading, in seconds, and checksums."""
        longest = 0.0
        sums: Sums = {}
        for engine in engines if self._topology.is_main else ():
            for rank in self._deployment.ranks_of(engine):
                found: list[int] = json.loads(self._take(f"mail/{rank}") or "")
                longest = max(longest, found[MAIL_NANOSECONDS] / 1e9)
                names = self.outgoing.tensors(rank)
                sums |= {(rank, name): total for name, total in zip(names, found[MAIL_CHECKSUMS:], strict=True)}
        return longest, sums

    def _take(self, key: str) -> str | None:
        """What a worker put into the store, once."""
        key = f"{self.outgoing.plan_id}/{key}"
        if not self._store.check([key]):
            return None
        found = self._store.get(key)
        self._store.delete_key(key)
        return str(found.decode())
