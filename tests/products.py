"""What an operation does below its surface, through torch's profiler: memory and matrix products."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod

import torch


@dataclass
class Memory:
    """Bytes. peak: the most that was held at a time of what was allocated meanwhile."""

    peak: int = 0


@contextmanager
def allocations() -> Iterator[Memory]:
    """Counts torch's allocations on the CPU; the result is there afterwards."""
    memory = Memory()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        yield memory
    held = 0
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        memory.peak = max(memory.peak, held)
    assert events, "the profiler saw no allocation"


@dataclass
class Work:
    """multiplications: of all matrix products."""

    multiplications: int = 0


@contextmanager
def products() -> Iterator[Work]:
    """Counts the multiplications of matrix products; the result is there afterwards."""
    work = Work()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profile:
        yield work
    for event in profile.events():
        if event.name in ("aten::mm", "aten::addmm", "mkldnn::_linear_pointwise"):
            matrices = [shape for shape in event.input_shapes if len(shape) == 2]
            (m, k), other = matrices[-2:]
            work.multiplications += m * k * (prod(other) // k if k else 0)
