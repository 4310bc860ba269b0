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

    def __init__(self, directory: Path, tensorboard: bool = False) -> None:
        self._file = (directory / "metrics.jsonl").open("a", buffering=1, encoding="utf-8")
        self._board: Any = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(directory / "tensorboard"))
        self.rows: list[Row] = []

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


def _shortened(value: float) -> float | None:
    """Nine significant digits; None (null) for NaN and infinities, which JSON does not have."""
    return float(f"{value:.9g}") if math.isfinite(value) else None
