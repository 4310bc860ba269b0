"""Which implementation of an operation runs."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

import torch

VARIABLE = "AREAL_MEGA_OPS_BACKEND"

BACKENDS = ("cpp", "cuda", "triton", "reference")

# Best first. The reference is the last resort of a device that no kernel of an operation was written for.
_PREFERENCE = {"cpu": ("cpp", "reference"), "cuda": ("cuda", "triton", "reference")}


def interpreting() -> bool:
    """Whether Triton kernels run in Triton's interpreter, on tensors of the CPU; for tests."""
    knobs = getattr(sys.modules.get("triton"), "knobs", None)  # that of torch 2.6 has none
    return os.environ.get("TRITON_INTERPRET") == "1" if knobs is None else knobs.runtime.interpret


def in_triton(module: str, function: str) -> Callable:
    """A function of ``areal_mega.triton_kernels.<module>``. The module, and Triton, are imported when it is called: who
    uses no Triton kernel does not wait for them."""

    def call(*arguments: Any) -> Any:
        return getattr(import_module(f"areal_mega.triton_kernels.{module}"), function)(*arguments)

    return call


def choose(
    operation: str, implementations: Mapping[str, Callable], device: torch.device, requested: str = ""
) -> Callable:
    """The implementation of an operation for tensors on a device.

    operation: its name, for messages. implementations: the operation's backends by name. requested: the name
    of a backend; empty: ``AREAL_MEGA_OPS_BACKEND``, or where that is not set, the best one for the device that was
    built.

    Raises ValueError for a backend that does not exist, that the operation does not have, that cannot run on the
    device, or that was not built.
    """
    able = _PREFERENCE.get(device.type, ("reference",))
    if device.type == "cpu" and interpreting():
        able = (*able, "triton")
    usable = [name for name in able if name in implementations]
    origin = "backend" if requested else VARIABLE
    name = requested or os.environ.get(VARIABLE) or next(x for x in usable if _is_built(x))
    if name not in BACKENDS:
        raise ValueError(f"{origin}={name} is not a backend: expected one of {', '.join(BACKENDS)}")
    if name not in usable:
        raise ValueError(
            f"{origin}={name}: {operation} has no such backend for tensors on {device.type}, only {', '.join(usable)}"
        )
    if not _is_built(name):
        raise ValueError(
            f"{origin}={name}: areal_mega._C was built without CUDA kernels. Build it with AREAL_MEGA_CUDA=1 in the "
            "environment, where nvcc is"
        )
    return implementations[name]


def _is_built(name: str) -> bool:
    return name != "cuda" or bool(cuda_architectures())


@cache
def cuda_architectures() -> tuple[str, ...]:
    """The compute capabilities that areal_mega._C has CUDA kernels for, such as ``("80", "90")``; empty: none."""
    try:
        kernels = getattr(compiled_module(), "cuda", None)
    except ImportError:
        return ()
    return tuple(kernels.architectures.split(",")) if kernels else ()


def compiled_module() -> ModuleType:
    """``areal_mega._C``. Raises ImportError with the way out if it was not built."""
    try:
        from areal_mega import _C  # torch is imported above: one OpenMP runtime, torch's, serves both
    except ImportError as error:
        raise ImportError(
            f"areal_mega._C does not load ({error}). Build it with `make setup`, or take the slow reference: "
            f"{VARIABLE}=reference"
        ) from error
    return _C
