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
    addressed = {name: _address(name, x, torch.device("cpu")) for name, x in arguments.items()}
    getattr(compiled_module(), kernel)(**addressed, threads=torch.get_num_threads(), isa=_isa.get())


def cuda(kernel: str, **arguments: Argument) -> None:
    """Start a kernel of areal_mega._C.cuda on the current stream of the tensors' device. Does not wait for it.

    kernel, arguments: as for `cpu`. The tensors may be let go of when this returns, as with torch's own operations:
    the allocator gives their memory to work that comes later on the stream.

    Raises ValueError for a tensor that is not contiguous memory on the CUDA device of the first one.
    """
    first = next(x.device for x in arguments.values() if isinstance(x, Tensor))
    device = first if first.type == "cuda" else torch.device("cuda")
    addressed = {name: _address(name, x, device) for name, x in arguments.items()}
    with torch.cuda.device(device):
        stream = torch.cuda.current_stream().cuda_stream
        getattr(compiled_module().cuda, kernel)(**addressed, stream=stream)


def suffix(dtype: torch.dtype) -> str:
    """What the names of a dtype's kernels end in: ``float32``, ``bfloat16`` ..."""
    return str(dtype).removeprefix("torch.")


def _address(name: str, x: Argument, device: torch.device) -> float | int | bool | str | list[float]:
    if x is None:
        return 0
    if not isinstance(x, Tensor):
        return x
    if x.device != device or not x.is_contiguous():
        raise ValueError(f"{name} is on {x.device} with strides {x.stride()}: expected contiguous memory on {device}")
    return x.data_ptr()
