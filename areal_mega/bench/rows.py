"""The results: a row for each contender of each case, as JSON has them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import groupby
from pathlib import Path

from areal_mega.bench.case import Case, Contender, Plan, Role, dtype_name
from areal_mega.bench.limits import Limits
from areal_mega.config.errors import UserError


@dataclass(frozen=True)
class Row:
    """One contender of one case.

    backend: a backend of the operation, or the name of what it is compared with. median_ms: of its rounds.
    peak_extra_mb: MiB on top of the inputs; None: this system does not tell. error: see `Case`. best_peer: the
    fastest peer that computes the same; None: none took part. ratio: its time over this row's. gb_per_s (10^9),
    tflop_per_s: of the bytes and operations that no implementation can do without; None: there are none.
    fraction_of_limit: time at the machine's measured limit over this row's; above 1 where caches serve it.

    role: ``ours``, ``peer`` or ``partial``, see `Contender`. outputs_mb: the part of peak_extra_mb that is results.
    limit: what bounds it: ``read``, ``copy`` or ``matmul``.
    """

    op: str
    direction: str
    backend: str
    shape: str
    dtype: str
    device: str
    median_ms: float
    peak_extra_mb: float | None
    error: float
    best_peer: str | None
    best_peer_ms: float | None
    ratio: float | None
    gb_per_s: float | None
    tflop_per_s: float | None
    fraction_of_limit: float | None
    role: Role
    rounds: int
    outputs_mb: float
    limit: str
    machine: str

    @property
    def case(self) -> tuple[str, ...]:
        """What the rows of one case have in common."""
        return self.op, self.direction, self.shape, self.dtype, self.device


@dataclass(frozen=True)
class Reading:
    """What was measured of one contender."""

    contender: Contender
    median_ms: float
    rounds: int
    peak_mb: float | None
    outputs_mb: float
    error: float


def rows_of(plan: Plan, case: Case, readings: Sequence[Reading], limits: Limits, machine: str) -> list[Row]:
    """The rows of one case: ours first, then by time."""
    peers = [reading for reading in readings if reading.contender.role == "peer"]
    best = min(peers, key=lambda peer: peer.median_ms, default=None)
    bytes_moved = case.work.read + case.work.written
    least, limit = limits.least_ms(case.work, plan.dtype)
    order = sorted(readings, key=lambda reading: (reading.contender.role != "ours", reading.median_ms))
    return [
        Row(
            op=plan.op,
            direction=plan.direction,
            backend=reading.contender.name,
            shape=plan.shape,
            dtype=dtype_name(plan.dtype),
            device=plan.device.type,
            median_ms=reading.median_ms,
            peak_extra_mb=reading.peak_mb,
            error=reading.error,
            best_peer=best.contender.name if best else None,
            best_peer_ms=best.median_ms if best else None,
            ratio=best.median_ms / reading.median_ms if best else None,
            gb_per_s=bytes_moved / reading.median_ms / 1e6 if bytes_moved else None,
            tflop_per_s=case.work.flop / reading.median_ms / 1e9 if case.work.flop else None,
            fraction_of_limit=least / reading.median_ms if least else None,
            role=reading.contender.role,
            rounds=reading.rounds,
            outputs_mb=reading.outputs_mb,
            limit=limit,
            machine=machine,
        )
        for reading in order
    ]


def by_case(rows: Iterable[Row]) -> list[list[Row]]:
    """The rows of each case."""
    return [list(group) for _, group in groupby(rows, key=lambda row: row.case)]


def write(path: Path, rows: Sequence[Row]) -> None:
    """A list with one object for each row, its keys the fields of `Row`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(asdict(row)) for row in rows)
    path.write_text(f"[\n{lines}\n]\n")


def read(path: Path) -> list[Row]:
    """What `write` has written. Raises UserError for a file that is not that."""
    try:
        return [Row(**row) for row in json.loads(path.read_text())]
    except (OSError, ValueError, TypeError) as error:
        names = ", ".join(field.name for field in fields(Row))
        raise UserError(
            f"{path} is not what --json writes ({error}): expected a list of objects with {names}"
        ) from error
