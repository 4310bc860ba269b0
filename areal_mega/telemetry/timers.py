"""Seconds by phase."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class PhaseTimers:
    """Wall time of the named phases of one step; `pop` hands them over and starts anew."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - start

    def pop(self) -> dict[str, float]:
        """Seconds by phase as metrics ``time/<phase>``, and their sum as ``time/step``."""
        seconds, self._seconds = self._seconds, {}
        return {f"time/{k}": v for k, v in seconds.items()} | {"time/step": sum(seconds.values())}
