"""What a weight update did and what it took."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from areal_mega.resharding.delta import Encoded

FILE_NAME = "weight_sync.jsonl"


@dataclass
class Spent:
    """A training rank's part in one update. pack, send: seconds. load: of the engine ranks that it is responsible for,
    the longest. words: that were compared with what was sent last; changed: those of them that differed. Others: see
    `SyncReport`."""

    pack: float = 0.0
    send: float = 0.0
    load: float = 0.0
    bytes_moved: int = 0
    bytes_out: int = 0
    bytes_full: int = 0
    words: int = 0
    changed: int = 0

    def count(self, encoded: Encoded, nbytes: int, engines: int, *, delta: bool) -> None:
        """A message that leaves this rank once and reaches ``engines``. nbytes: as it would be without delta."""
        size = encoded.payload.numel()
        self.bytes_out += size
        self.bytes_moved += size * engines
        self.bytes_full += nbytes * engines
        if delta:
            self.words += nbytes // encoded.word
            self.changed += encoded.changed


@dataclass(frozen=True)
class SyncReport:
    """One update of engines.

    bytes_moved: between devices, counted while sending. bytes_out: of these, what the training ranks sent, while
    engines passed on the rest. bytes_full: what bytes_moved would be without delta. lower_bound: what the engines'
    devices did not hold, all of it. changed: part of the elements that differed from what was sent last; None: they
    were not compared. seconds: of the whole. seconds_pack, seconds_send: of the training rank that took longest
    (``worst_rank`` is the one that took longest for both). seconds_load: of the engine rank that took longest to write
    its parameters. verified: whether checksums of all tensors were compared and equal. engines: their numbers.
    failures: those of them that did not get the version, and why.
    """

    version: int
    transport: str
    bytes_moved: int
    bytes_out: int
    bytes_full: int
    lower_bound: int
    changed: float | None
    seconds: float
    seconds_pack: float
    seconds_send: float
    seconds_load: float
    worst_rank: int
    verified: bool
    engines: list[int]
    failures: dict[int, str]

    @classmethod
    def of(
        cls,
        version: int,
        transport: str,
        parts: Sequence[Spent],
        lower_bound: int,
        seconds: float,
        *,
        verified: bool,
        engines: list[int],
        failures: dict[int, str],
    ) -> SyncReport:
        """From what each training rank spent."""
        work = [part.pack + part.send for part in parts]
        words = sum(part.words for part in parts)
        return cls(
            version,
            transport,
            bytes_moved=sum(part.bytes_moved for part in parts),
            bytes_out=sum(part.bytes_out for part in parts),
            bytes_full=sum(part.bytes_full for part in parts),
            lower_bound=lower_bound,
            changed=sum(part.changed for part in parts) / words if words else None,
            seconds=seconds,
            seconds_pack=max(part.pack for part in parts),
            seconds_send=max(part.send for part in parts),
            seconds_load=max(part.load for part in parts),
            worst_rank=work.index(max(work)),
            verified=verified,
            engines=engines,
            failures=failures,
        )

    def append_to(self, directory: Path) -> None:
        """Add a line to the run directory's weight_sync.jsonl."""
        with (directory / FILE_NAME).open("a") as file:
            file.write(json.dumps(asdict(self)) + "\n")
