"""One copy for all engines: each worker passes on to the next engine what it receives, segment by segment.

The ranks with the same number in all engines form a chain, whose first receives from the trainers. A message is its
header, then its payload in segments. Who loses what is before him in the chain says so to the one behind, so that all
behind a lost engine know that they have not got everything.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from areal_mega.resharding.delta import HEADER, Encoded
from areal_mega.resharding.peers import TIMEOUT, Peers

SEGMENT_BYTES = 16 << 20
SEGMENTS = 1 << 12  # tags of one source: 0 for the header, then one for each segment

Sent = tuple[Any, Tensor]  # the work, and what must live until it is done


@dataclass(frozen=True, eq=False)
class Part:
    """What goes in one piece. source: the training rank that it comes from."""

    tensor: Tensor
    source: int
    number: int

    @property
    def tag(self) -> int:
        return self.source * SEGMENTS + self.number


def parts(payload: Tensor, source: int) -> Iterator[Part]:
    """The segments of a payload, uint8 ``[bytes]``."""
    for number, begin in enumerate(range(0, payload.numel(), SEGMENT_BYTES), start=1):
        yield Part(payload[begin : begin + SEGMENT_BYTES], source, number)


def send(group: Peers, encoded: Encoded, source: int, to: int) -> list[Sent]:
    """A training rank's message, on its way to a rank of the group. Raises RuntimeError if that is lost."""
    header = torch.tensor(encoded.header, device=encoded.payload.device)
    all_parts = [Part(header, source, 0), *parts(encoded.payload, source)]
    return [(group.send([part.tensor], to, part.tag), part.tensor) for part in all_parts]


class Chain:
    """One worker's place in the chain, for one chunk.

    before, behind: ranks in the group. before: None: the trainers. behind: None: nobody.
    """

    def __init__(self, group: Peers, before: int | None, behind: int | None, device: torch.device) -> None:
        self._group, self._before, self._behind, self._device = group, before, behind, device
        self._sent: list[Sent] = []
        self._complete = True

    def headers(self, sources: Sequence[int]) -> list[list[int]]:
        """Of the messages of these training ranks. Those that are lost are of empty messages."""
        found = [Part(torch.zeros(HEADER, dtype=torch.int64, device=self._device), source, 0) for source in sources]
        self.take(found)
        return [part.tensor.tolist() for part in found]

    def take(self, expected: Sequence[Part]) -> None:
        """Receive and pass on.

        Raises:
            RuntimeError: the trainers are lost.
        """
        for part, work in zip(expected, self._receive(expected), strict=True):
            self._wait(work)
            if not self._complete:
                part.tensor.zero_()
            self._pass_on(part)

    def finish(self) -> bool:
        """Whether all has come; returns when all that comes has been passed on."""
        ok = Part(torch.zeros(1, dtype=torch.int64, device=self._device), 0, SEGMENTS - 1)
        if self._before is not None:
            for work in self._receive([ok]):
                self._wait(work)
            self._complete &= bool(ok.tensor)
        ok.tensor.fill_(self._complete)
        self._pass_on(ok)
        with suppress(RuntimeError):  # what is behind is lost
            for work, _ in self._sent:
                work.wait(TIMEOUT)
        return self._complete

    def _receive(self, expected: Sequence[Part]) -> list[Any]:
        works: list[Any] = [None] * len(expected)
        for i, part in enumerate(expected if self._complete else ()):
            try:
                before = part.source if self._before is None else self._before
                works[i] = self._group.recv([part.tensor], before, part.tag)
            except RuntimeError as error:
                self._lose(error)
                break
        return works

    def _wait(self, work: Any) -> None:
        if work is None or not self._complete:
            return
        try:
            work.wait(TIMEOUT)
        except RuntimeError as error:
            self._lose(error)

    def _lose(self, error: RuntimeError) -> None:
        if self._before is None:
            raise error
        self._complete = False

    def _pass_on(self, part: Part) -> None:
        if self._behind is None:
            return
        try:
            self._sent.append((self._group.send([part.tensor], self._behind, part.tag), part.tensor))
        except RuntimeError:  # it is lost
            self._behind = None
