"""New weights for engines on devices of their own, from process to process.

For each engine there is a group of all training ranks and its workers. In a chunk every training rank packs what a
worker gets from it into one message; the worker receives its messages side by side in one buffer, and unpacks from
there into its parameters. An engine that was started anew joins a new group; the others keep theirs.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from areal_mega.resharding.deployment import Deployment
from areal_mega.resharding.engine_update import Order
from areal_mega.resharding.loader import MAIL_CHECKSUMS, MAIL_NANOSECONDS
from areal_mega.resharding.outgoing import Outgoing
from areal_mega.resharding.peers import TIMEOUT, Peers, join
from areal_mega.resharding.report import Spent
from areal_mega.runtime.distributed import Topology


class DisaggregatedTransport:
    """Every training rank has one; all of them call the same methods in the same order.

    weights: this rank's tensors by Megatron name, always the same ones: they are read again at each update.
    buffer_bytes: of each engine rank's buffer, unless a single tensor takes more.
    """

    name = "disaggregated"
    streams = True

    def __init__(
        self, topology: Topology, deployment: Deployment, weights: Mapping[str, Tensor], buffer_bytes: int
    ) -> None:
        self._topology, self._deployment, self._weights = topology, deployment, weights
        self.outgoing = Outgoing(topology, deployment, weights, buffer_bytes)
        self._store: dist.TCPStore | None = None
        hosts = set(topology.gather(socket.gethostname()))
        if topology.is_main:
            host = "127.0.0.1" if len(hosts) == 1 else socket.gethostbyname(socket.gethostname())
            self._store = dist.TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=TIMEOUT)
        own = (self._store.host, self._store.port) if self._store else None
        self._host, self._port = topology.broadcast(own)
        self._groups: dict[int, Peers] = {}
        self._meetings = 0

    def connect_orders(self, engines: Sequence[int]) -> dict[int, Order]:
        """The main rank's, for the workers of these engines: how they take part."""
        self._meetings += 1
        if not self._topology.is_main:
            return {}
        orders = {}
        for engine in engines:
            for number, destination in enumerate(self._deployment.ranks_of(engine)):
                there = self.outgoing.slots(destination)
                orders[destination] = {
                    **self.outgoing.connect_order(destination, there),
                    "transport": self.name,
                    "slots": [[slot.source, slot.chunk, slot.offset, slot.nbytes] for slot in there],
                    "meeting": [self._host, self._port, self._name(engine)],
                    "rank": self._topology.world + number,
                    "world": self._world,
                }
        return orders

    @property
    def _world(self) -> int:
        return self._topology.world + self._deployment.engines.tp

    def _name(self, engine: int) -> str:
        return f"{self.outgoing.plan_id}/{self._meetings}/{engine}"

    def meet(self, engines: Sequence[int]) -> None:
        """Join the groups of engines whose workers have their connect orders."""
        for engine in engines:
            self._groups.pop(engine, None)
            self._groups[engine] = join(
                self._host,
                self._port,
                self._name(engine),
                self._topology.rank,
                self._world,
                self._topology.device,
            )

    def fill(self, chunk: int, engines: Sequence[int], spent: Spent) -> dict[int, str]:
        """Send this rank's part of a chunk to the workers of these engines, which have the order to take it.

        Returns the engines that were lost, and how it showed.
        """
        started = time.perf_counter()
        sending: list[tuple[int, Any, Tensor]] = []
        lost: dict[int, str] = {}
        for parcel in self.outgoing.parcels[chunk]:
            engine, number = divmod(parcel.message.destination, self._deployment.engines.tp)
            if engine in engines and engine not in lost:
                message = torch.empty(parcel.nbytes, dtype=torch.uint8, device=self._topology.device)
                parcel.copies.pack(self._weights, message)
                spent.bytes_moved += parcel.nbytes
                try:
                    work = self._groups[engine].send([message], self._topology.world + number, chunk)
                    sending.append((engine, work, message))
                except RuntimeError as error:
                    lost[engine] = str(error)
        packed = time.perf_counter()
        for engine, work, _ in sending:
            try:
                work.wait()
            except RuntimeError as error:
                lost[engine] = str(error)
        spent.pack += packed - started
        spent.send += time.perf_counter() - packed
        return lost

    def read_mail(self, engines: Sequence[int]) -> tuple[float, dict[tuple[int, str], int]]:
        """On the main rank, of the workers of these engines, which send it after the last chunk and after a check: the
        longest time of loading, in seconds, and checksums. An engine that was lost says nothing."""
        longest = 0.0
        sums: dict[tuple[int, str], int] = {}
        for engine in engines if self._topology.is_main else ():
            for number, destination in enumerate(self._deployment.ranks_of(engine)):
                names = self.outgoing.tensors(destination)
                mail = torch.zeros(MAIL_CHECKSUMS + len(names), dtype=torch.int64, device=self._topology.device)
                with suppress(RuntimeError):
                    self._groups[engine].recv([mail], self._topology.world + number, len(self.outgoing.chunks)).wait()
                found = mail.tolist()
                longest = max(longest, found[MAIL_NANOSECONDS] / 1e9)
                sums |= {(destination, name): total for name, total in zip(names, found[MAIL_CHECKSUMS:], strict=True)}
        return longest, sums
