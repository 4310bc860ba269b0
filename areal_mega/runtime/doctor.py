"""What is installed here, and what each thing gives."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from areal_mega.runtime import extensions

SHARED_MEMORY = Path("/dev/shm")
LITTLE_SHARED_MEMORY = 1 << 30
GIB = 2**30


@dataclass(frozen=True)
class Finding:
    """there: whether it was found. found: what exactly. gives: what it is good for, or what there is without it.
    needed: whether nothing works without it."""

    name: str
    there: bool
    found: str
    gives: str
    needed: bool = False


def examine() -> list[Finding]:
    """All findings, the needed ones first."""
    return [*_needed(), *_devices(), *_optional(), *_machine()]


def _needed() -> Iterator[Finding]:
    for package, gives in (
        ("torch", "tensors, gloo and NCCL"),
        ("megatron-core", "training: the policy in every parallel layout"),
        ("sglang", "generation"),
        ("transformers", "models' configs, tokenizers, RoPE scaling; the tests' oracle"),
    ):
        version = _version(package)
        yield Finding(package, version is not None, version or "not installed", gives, needed=True)
    yield _kernels()


def _kernels() -> Finding:
    gives = "our kernels in C++: log-prob, GAE, losses, pieces"
    try:
        from areal_mega import _C  # noqa: F401
    except ImportError as error:
        return Finding("areal_mega._C", False, str(error), f"{gives}; `make setup` builds it", needed=True)
    return Finding("areal_mega._C", True, "built", gives, needed=True)


def _devices() -> Iterator[Finding]:
    if not torch.cuda.is_available():
        reason = "no device" if torch.version.cuda else "torch was built for the CPU"
        yield Finding("GPU", False, reason, "all runs on the CPU: Megatron on gloo, SGLang with our attention")
        return
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        found = f"{device.name}, {device.total_memory / GIB:.0f} GiB, sm_{device.major}{device.minor}"
        yield Finding(f"GPU {index}", True, found, "training and generation share it")


def _optional() -> Iterator[Finding]:
    engine, apex = extensions.installed("transformer_engine"), extensions.installed("apex")
    version = _version("transformer-engine") or ("installed" if engine else "not installed")
    gives = "its linear layers, fp8 (policy.megatron.fp8), grouped GEMMs and fused permutation for experts, fused Adam"
    if not extensions.transformer_engine():
        gives = f"on a GPU: {gives}; without it torch's and Megatron's own layers"
    yield Finding("TransformerEngine", engine, version, gives)
    gives = "fused Adam" if not engine else "nothing more: TransformerEngine's Adam comes first"
    yield Finding("Apex", apex, "installed" if apex else "not installed", gives if apex else "fused Adam; else torch's")
    flash = _version("flash-attn")
    gives = "nothing is missing without it: torch's variable-length attention is used on GPUs"
    yield Finding("flash-attn", flash is not None, flash or "not installed", gives)


def _machine() -> Iterator[Finding]:
    compiler = os.environ.get("CXX") or shutil.which("c++")
    yield Finding("C++ compiler", bool(compiler), _first_line(compiler), "builds our kernels (make setup)")
    nvcc = shutil.which("nvcc")
    yield Finding("nvcc", bool(nvcc), nvcc or "not found", "builds our CUDA kernels")
    yield Finding("CPU", True, f"{len(os.sched_getaffinity(0))} cores, {_memory()}", "ranks and engine share them")
    yield _shared_memory()
    yield _ports()


def _shared_memory() -> Finding:
    gives = "weights go from trainer to engine through it"
    if not SHARED_MEMORY.is_dir():
        return Finding("shared memory", False, f"no {SHARED_MEMORY}", gives)
    free = shutil.disk_usage(SHARED_MEMORY).free
    enough = free >= LITTLE_SHARED_MEMORY
    gives += "" if enough else "; little: in a container start it with --shm-size=8g or --ipc=host"
    return Finding("shared memory", enough, f"{free / GIB:.1f} GiB free in {SHARED_MEMORY}", gives)


def _ports() -> Finding:
    gives = "torchrun, Megatron and SGLang listen there"
    try:
        with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname(), 2):
            return Finding("loopback ports", True, "open", gives)
    except OSError as error:
        return Finding("loopback ports", False, str(error), gives, needed=True)


def _memory() -> str:
    return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / GIB:.0f} GiB"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _first_line(compiler: str | None) -> str:
    if not compiler:
        return "not found; on Debian and Ubuntu: apt install g++"
    try:
        run = subprocess.run([*compiler.split(), "--version"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{compiler}: {error}"
    return (run.stdout.splitlines() or [compiler])[0]
