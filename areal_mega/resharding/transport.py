"""What every way of transport offers to `weight_sync`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence

from areal_mega.resharding.engine_update import Order
from areal_mega.resharding.outgoing import Outgoing
from areal_mega.resharding.report import Spent

Sums = dict[tuple[int, str], int]  # checksum by engine rank and Hugging Face tensor


class TransportError(RuntimeError):
    """A training rank cannot bring its part, whatever the engines do."""


class Transport(ABC):
    """How bytes get from the training ranks to the engines' workers. Every training rank has one, and all of them call
    the same methods in the same order.

    streams: the workers take a chunk while it is sent; otherwise when all ranks have brought their parts of it.
    outgoing: what this rank sends.
    """

    name: str
    streams = False
    outgoing: Outgoing

    @abstractmethod
    def connect_orders(self, engines: Sequence[int]) -> dict[int, Order]:
        """For the workers of these engines that this rank is responsible for: how they take part, once."""

    def meeting(self, engines: Mapping[int, int]) -> dict[int, Order] | None:
        """For workers of these engines (number → start) that must meet the trainers now: their orders, on the main
        rank; None: nobody must."""
        return None

    def meet(self, hopeless: Callable[[], bool]) -> None:
        """This rank's part of a meeting, while the workers have their orders. hopeless: on the main rank, whether one
        of them will not come. If that failed, `meeting` asks for another one."""
        return None

    def load_order(self, engines: Sequence[int]) -> Order:
        """What the workers of these engines must know to take the chunk that is filled next."""
        return {}

    @abstractmethod
    def fill(self, chunk: int, engines: Sequence[int], spent: Spent, *, delta: bool) -> dict[int, str]:
        """This rank's part of a chunk, on its way. delta: all of these engines have what was filled last, and need no
        more than the difference. Returns the engines that were lost by it, and how it showed.

        Raises:
            TransportError: nobody gets this chunk.
        """

    def missed(self, engines: Sequence[int]) -> list[int]:
        """On the main rank: those of these engines that live and did not get the last chunk, since another was lost."""
        return []

    @abstractmethod
    def read_mail(self, engines: Sequence[int]) -> tuple[float, Sums]:
        """Of the workers that this rank is responsible for, when they have delivered it: the longest time of loading,
        in seconds, and what the last check found."""
