"""Where metrics go: a JSONL file always, TensorBoard if asked."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

Row = dict[str, float | None]


class Journal:
    """Appends rows to ``metrics.jsonl``, one JSON line each; flushed at once, so a killed run keeps its past.

    Several rows may be of one step, and what is known before the first step is of step 0.
    """

    def __init__(self, directory: Path, tensorboard: bool = False, resume_step: int | None = None) -> None:
        """resume_step: the run goes on behind it, and rows of later steps are dropped; None: it begins."""
        path = directory / "metrics.jsonl"
        self.rows: list[Row] = [] if resume_step is None else _rows_until(path, resume_step)
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(row) + "\n" for row in self.rows), encoding="utf-8")
        temporary.replace(path)
        self._file = path.open("a", buffering=1, encoding="utf-8")
        self._board: Any = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            after = None if resume_step is None else resume_step + 1
            self._board = SummaryWriter(str(directory / "tensorboard"), purge_step=after)

    def write(self, step: int, metrics: dict[str, float]) -> None:
        row: Row = {"step": step, **{k: _shortened(float(v)) for k, v in metrics.items()}}
        self.rows.append(row)
        self._file.write(json.dumps(row) + "\n")
        if self._board is not None:
            for name, value in metrics.items():
                self._board.add_scalar(name, value, step)

    def close(self) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()


def _rows_until(path: Path, step: int) -> list[Row]:
    """The rows of steps up to ``step``; a killed run may have left half a row at the end."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return [row for row in rows if row["step"] <= step]


def _shortened(value: float) -> float | None:
    """Nine significant digits; None (null) for NaN and infinities, which JSON does not have."""
    return float(f"{value:.9g}") if math.isfinite(value) else None
