"""The way into areal_mega._C: the only place that turns tensors into addresses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from areal_mega.ops.backend import compiled_module

Argument = Tensor | float | int | bool | str | list[float] | None

_isa: ContextVar[str] = ContextVar("isa", default="")


@contextmanager
def instruction_set(name: str) -> Iterator[None]:
    """Within, the CPU kernels use the instruction set of this name, one of ``_C.available_isas()``."""
    token = _isa.set(name)
    try:
        yield
    finally:
        _isa.reset(token)


def cpu(kernel: str, **arguments: Argument) -> None:
    """Run a CPU kernel of areal_mega._C with torch's number of threads.

    kernel: its name, which often ends in a dtype (see `suffix`). arguments: tensors go over as addresses and stay
    alive until the kernel has returned; None as address 0.

    Raises ValueError for a tensor that is not contiguous CPU memory.
    """
    addressed = {name: _address(name, x, "cpu") for name, x in arguments.items()}
    getattr(compiled_module(), kernel)(**addressed, threads=torch.get_num_threads(), isa=_isa.get())


def suffix(dtype: torch.dtype) -> str:
    """What the names of a dtype's kernels end in: ``float32``, ``bfloat16`` ..."""
    return str(dtype).removeprefix("torch.")


def _address(name: str, x: Argument, device: str) -> float | int | bool | str | list[float]:
    if x is None:
        return 0
    if not isinstance(x, Tensor):
        return x
    if x.device.type != device or not x.is_contiguous():
        raise ValueError(f"{name} is on {x.device} with strides {x.stride()}: expected contiguous memory on {device}")
    return x.data_ptr()
