"""Our CUDA kernels where there is no GPU: their sources, compiled for the CPU with a stand-in for CUDA's header."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import pybind11
import torch

from areal_mega import _C
from areal_mega.ops import backend, native

_HERE = Path(__file__).resolve().parent
_ROOT = _HERE.parents[1]

# Unaligned accesses and reads past the end of an array end the process.
_FLAGS = [
    *("-std=c++17", "-O1", "-shared", "-fPIC", "-fvisibility=hidden"),
    *("-fsanitize=alignment,bounds", "-fno-sanitize-recover", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"),
    '-DAREAL_MEGA_CUDA_ARCHS="emulated"',
]


@cache
def emulation() -> ModuleType:
    """The module of module.cpp, compiled again if a source is newer."""
    path = _ROOT / "build" / f"emulated-{sys.implementation.cache_tag}.so"
    folders = [_HERE, *(_ROOT / "csrc" / folder for folder in ("", "cuda", "bindings", "bindings/cuda"))]
    sources = [source for folder in folders for source in folder.glob("*.*")]
    if not path.exists() or path.stat().st_mtime < max(source.stat().st_mtime for source in sources):
        path.parent.mkdir(exist_ok=True)
        fresh = path.with_suffix(f".{os.getpid()}")
        compiler = os.environ.get("CXX") or shutil.which("c++") or "g++"
        includes = [_HERE, pybind11.get_include(), sysconfig.get_path("include")]
        command = [compiler, *_FLAGS, *(f"-I{folder}" for folder in includes), _HERE / "module.cpp", "-o", fresh]
        subprocess.run(command, check=True)
        fresh.replace(path)
    spec = importlib.util.spec_from_file_location("emulated", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def emulated(operation: Callable) -> Callable:
    """The operation with the backend ``cuda`` on tensors of the CPU."""

    def run(*args: Any, **kwargs: Any) -> Any:
        with _emulated_gpu():
            return operation(*args, backend="cuda", **kwargs)

    return run


@contextmanager
def lanes_take_turns_backwards() -> Iterator[None]:
    emulation().take_turns_backwards(True)
    try:
        yield
    finally:
        emulation().take_turns_backwards(False)


@contextmanager
def _emulated_gpu() -> Iterator[None]:
    with ExitStack() as stack:
        stack.enter_context(patch.object(_C, "cuda", emulation().cuda, create=True))
        stack.enter_context(patch.object(backend, "cuda_architectures", lambda: ("emulated",)))
        stack.enter_context(patch.dict(backend._PREFERENCE, cpu=("cuda",)))
        stack.enter_context(patch.object(native, "cuda", _start))
        yield


def _start(kernel: str, **arguments: native.Argument) -> None:
    addressed = {name: native._address(name, x, torch.device("cpu")) for name, x in arguments.items()}
    getattr(emulation().cuda, kernel)(**addressed, stream=0)
