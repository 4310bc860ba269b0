"""What the machine can do at best: its memory bandwidth and the rate of its matrix products, measured."""

from __future__ import annotations

import platform
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch

from areal_mega.bench.case import Contender, Work
from areal_mega.bench.clock import clock_of, take_turns
from areal_mega.ops.gemm import product

_SECONDS = 1.5


class Limits:
    """Of one device; the best of several runs each."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        on_gpu = device.type == "cuda"
        self._size = 8192 if on_gpu else 2048
        # Far more than the caches hold.
        source = torch.ones(2**30 if on_gpu else 2**27, dtype=torch.int32, device=device)
        target = torch.empty_like(source)
        # A GPU reads fastest where it adds little; a CPU's fastest readers are a maximum of integers and a dot product.
        as_float = source.view(torch.float32)
        readers: list[Callable[[], object]] = [source.amax, lambda: torch.dot(as_float, as_float)]
        copying, *reading = self._best([lambda: target.copy_(source), *readers])
        self.read = source.nbytes / min(reading) / 1e6
        self.copy = 2 * source.nbytes / copying / 1e6

    def _best(self, runs: list[Callable[[], object]]) -> list[float]:
        """Milliseconds."""
        contenders = [Contender("", lambda run=run: (run(), ())[1]) for run in runs]  # type: ignore[misc]
        return [min(times) for times in take_turns(contenders, clock_of(self._device), _SECONDS)]

    @cache  # noqa: B019 (there is one for each run of the program)
    def matmul(self, dtype: torch.dtype) -> float:
        """TFLOP/s."""
        a, b = (torch.randn(self._size, self._size, device=self._device).to(dtype) for _ in range(2))
        return 2 * self._size**3 / min(self._best([lambda: product(a, b.t()), lambda: torch.mm(a, b)])) / 1e9

    def least_ms(self, work: Work, dtype: torch.dtype) -> tuple[float, str]:
        """The time that the work takes at the limit, and which limit that is; 0 if it has neither bytes nor products.

        Work that only reads is held against the read bandwidth, other work against that of a copy.
        """
        rate, name = (self.copy, "copy") if work.written else (self.read, "read")
        of_memory = (work.read + work.written) / rate / 1e6
        of_products = work.flop / self.matmul(dtype) / 1e9 if work.flop else 0.0
        return (of_products, "matmul") if of_products > of_memory else (of_memory, name if of_memory else "")


def machine_name(device: torch.device) -> str:
    """The processor, how many threads of it, and torch."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    model = re.search(r"^model name\s*:\s*(.+)$", _read("/proc/cpuinfo"), re.MULTILINE)
    name = model[1] if model else platform.processor() or platform.machine()
    return f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def _read(path: str) -> str:
    return Path(path).read_text() if Path(path).exists() else ""
