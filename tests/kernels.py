"""Every way an operation of areal_mega.ops can be computed on this machine, for tests that compare them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from cuda_emulation import emulated

from areal_mega import _C
from areal_mega.ops import native

Kernel = Callable[..., Any]


def kernels_of(operation: Callable, *backends: str) -> dict[str, Kernel]:
    """By name: the operation with each backend, with each instruction set of this CPU for ``cpp``, and ``cuda``
    emulated."""
    found: dict[str, Kernel] = {}
    for backend in backends:
        if backend == "cpp":
            found |= {f"cpp-{isa}": partial(_with_isa, operation, isa) for isa in _C.available_isas()}
        elif backend == "cuda":
            found["cuda-emulated"] = emulated(operation)
        else:
            found[backend] = partial(operation, backend=backend)
    return found


def _with_isa(operation: Callable, isa: str, *args: Any, **kwargs: Any) -> Any:
    with native.instruction_set(isa):
        return operation(*args, backend="cpp", **kwargs)
