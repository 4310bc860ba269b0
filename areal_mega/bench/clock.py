"""Times and peak memory of contenders that take turns."""

from __future__ import annotations

import ctypes
import gc
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import torch

from areal_mega.bench.case import Contender, Outputs

# Contenders take part in a round while they have time left, but at least in some; many more say nothing new.
LEAST_ROUNDS, MOST_ROUNDS = 3, 60

_MIB = 2**20


class Clock(Protocol):
    """How a device is timed."""

    def time(self, run: Callable[[], Outputs]) -> Callable[[], float]:
        """Runs once. The result gives the milliseconds that it took, and may wait for them."""

    def peak(self, run: Callable[[], Outputs]) -> tuple[Outputs, float | None]:
        """What one run returns, and MiB that it took on top of what there was; None: this system does not tell."""


def clock_of(device: torch.device) -> Clock:
    return CudaClock(device) if device.type == "cuda" else CpuClock()


def take_turns(contenders: Sequence[Contender], clock: Clock, seconds: float) -> list[list[float]]:
    """Milliseconds of each contender in each of its rounds: A B C A B C ..., so that what else the machine does, and
    what the caches hold, meets all alike. seconds: for all of them together, if the least number of rounds allows."""
    readings: list[list[Callable[[], float]]] = [[] for _ in contenders]
    left = [seconds / len(contenders)] * len(contenders)
    gc.collect()
    gc.disable()
    try:
        for turn in range(MOST_ROUNDS):
            for i, contender in enumerate(contenders):
                if turn >= LEAST_ROUNDS and left[i] <= 0:
                    continue
                start = time.perf_counter()
                if contender.reset:
                    contender.reset()
                readings[i].append(clock.time(contender.run))
                left[i] -= time.perf_counter() - start
    finally:
        gc.enable()
    return [[reading() for reading in own] for own in readings]


class CpuClock:
    """Wall time; memory as the kernel counts resident pages."""

    def time(self, run: Callable[[], Outputs]) -> Callable[[], float]:
        start = time.perf_counter()
        outputs = run()
        milliseconds = 1e3 * (time.perf_counter() - start)
        del outputs  # giving memory back is not timed
        return lambda: milliseconds

    def peak(self, run: Callable[[], Outputs]) -> tuple[Outputs, float | None]:
        gc.collect()
        _give_memory_back()
        try:
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew at what is resident now
        except OSError:
            return run(), None
        before = _resident("VmRSS")
        outputs = run()
        return outputs, max(0.0, _resident("VmHWM") - before)


class CudaClock:
    """Time between events on the stream, with a cold L2 cache; memory as torch's allocator counts it."""

    def __init__(self, device: torch.device) -> None:
        cache = torch.cuda.get_device_properties(device).L2_cache_size
        # Writing this takes longer than Python needs to launch what is timed, so the launches are not.
        self._flush = torch.empty(max(4 * cache, 256 * _MIB), dtype=torch.uint8, device=device)
        self._device = device

    def time(self, run: Callable[[], Outputs]) -> Callable[[], float]:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._flush.zero_()
        start.record()
        run()
        end.record()

        def milliseconds() -> float:
            end.synchronize()
            return start.elapsed_time(end)

        return milliseconds

    def peak(self, run: Callable[[], Outputs]) -> tuple[Outputs, float | None]:
        gc.collect()
        torch.cuda.synchronize(self._device)
        torch.cuda.reset_peak_memory_stats(self._device)
        before = torch.cuda.memory_allocated(self._device)
        outputs = run()
        torch.cuda.synchronize(self._device)
        return outputs, (torch.cuda.max_memory_allocated(self._device) - before) / _MIB


def _give_memory_back() -> None:
    """What earlier runs have freed must not be there for the next one. Only glibc can."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _resident(key: str) -> float:
    """MiB, from /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) / 1024
    return 0.0
