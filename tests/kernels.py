"""Every way an operation of areal_mega.ops can be computed on this machine, for tests that compare them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from cuda_emulation import emulated
from torch import Tensor

from areal_mega import _C
from areal_mega.ops import PieceTable, native
from areal_mega.ops.backend import cuda_architectures, interpreting

Kernel = Callable[..., Any]

ON_GPU = "cuda:"  # what the names of kernels begin with that compute on a GPU


def kernels_of(operation: Callable, *backends: str) -> dict[str, Kernel]:
    """By name: the operation with each backend that runs here, on the CPU and, if there is one, on a GPU.

    With ``cpp`` it is there once for each instruction set of this CPU, with ``cuda`` emulated. All take and return
    tensors of the CPU.
    """
    found: dict[str, Kernel] = {}
    for backend in on_cpu(*backends):
        if backend == "cpp":
            found |= {f"cpp-{isa}": partial(_with_isa, operation, isa) for isa in _C.available_isas()}
        else:
            found[backend] = partial(operation, backend=backend)
    if "cuda" in backends:
        found["cuda-emulated"] = emulated(operation)
    if torch.cuda.is_available():
        unable = {"cpp"} if cuda_architectures() else {"cpp", "cuda"}
        able = [backend for backend in backends if backend not in unable]
        found |= {ON_GPU + backend: partial(_on_gpu, partial(operation, backend=backend)) for backend in able}
    return found


def on_cpu(*backends: str) -> list[str]:
    """Those of the backends that compute on tensors of the CPU."""
    return [name for name in backends if name in ("reference", "cpp") or (name == "triton" and interpreting())]


def affordable(kernel: Kernel, size: int, *, interpreted: int) -> int:
    """``size``, or the smaller one for Triton's interpreter, to which a thousand tokens are as one, but a thousand
    programs cost seconds."""
    backend = getattr(kernel, "keywords", {}).get("backend")
    return interpreted if backend == "triton" and interpreting() else size


def each_kernel_of(kernels: Mapping[str, Kernel]) -> pytest.MarkDecorator:
    """A test with the argument ``kernel`` runs for each of them; those on a GPU have the marker ``gpu``."""
    return _each("kernel", kernels)


def each_device_of(kernels: Mapping[str, Kernel]) -> pytest.MarkDecorator:
    """A test with the argument ``kernels`` runs for all of one device together: what they compare is made once."""
    gpu = {name: k for name, k in kernels.items() if name.startswith(ON_GPU)}
    cpu = {name: k for name, k in kernels.items() if name not in gpu}
    return _each("kernels", {name: these for name, these in (("cpu", cpu), (ON_GPU, gpu)) if these})


def interpret_triton() -> None:
    """Triton's kernels run in its interpreter in this process, and not in those that it starts.

    Triton decides while a kernel is defined, for its own library while that is imported: nothing may have imported
    Triton before. The variable is gone afterwards; the knob that stands for it stays. Where there is no Triton, as
    beside a torch for the CPU alone, or one too old to have the knob, its kernels take no part.
    """
    if find_spec("triton") is None:
        return
    assert "triton" not in sys.modules, "Triton was imported before it could be told to interpret"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        knobs = getattr(import_module("triton"), "knobs", None)
        if knobs is not None:
            patch.setattr(knobs, "propagate_env", False)
            knobs.runtime.interpret = True


def _each(argument: str, values: Mapping[str, Any]) -> pytest.MarkDecorator:
    marks = {name: (pytest.mark.gpu,) if name.startswith(ON_GPU) else () for name in values}
    return pytest.mark.parametrize(argument, [pytest.param(x, id=k, marks=marks[k]) for k, x in values.items()])


def _with_isa(operation: Callable, isa: str, *args: Any, **kwargs: Any) -> Any:
    with native.instruction_set(isa):
        return operation(*args, backend="cpp", **kwargs)


def _on_gpu(operation: Callable, *args: Any, **kwargs: Any) -> Any:
    """The operation on copies of the tensors on the GPU; what it writes to its arguments comes back as well."""
    memory: dict[int, tuple[Tensor, Tensor]] = {}

    def there(x: Any) -> Any:
        if isinstance(x, list | tuple):
            return type(x)(map(there, x))
        if isinstance(x, PieceTable):
            return x.to("cuda")
        if not isinstance(x, Tensor):
            return x
        if x.requires_grad:
            return x.cuda()
        # The same strides, offset and overlaps as here: the copy is of all the memory that x is a part of.
        whole = torch.empty(0, dtype=x.dtype).set_(x.untyped_storage())
        whole, copy = memory.setdefault(x.untyped_storage().data_ptr(), (whole, whole.cuda()))
        return copy.view(x.dtype).as_strided(x.shape, x.stride(), x.storage_offset())

    def back(x: Any) -> Any:
        if isinstance(x, tuple):
            return tuple(map(back, x))
        return x.cpu() if isinstance(x, Tensor) else x

    result = back(operation(*map(there, args), **{name: there(x) for name, x in kwargs.items()}))
    for whole, copy in memory.values():
        whole.copy_(copy)
    return result
