"""Runs a Python program that nobody trusts: in its own process group, under limits, killed on time.

What else holds it back depends on the kernel, see `areal_mega.runtime.jail`; `isolation` says what there is.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_JAIL = Path(__file__).with_name("jail.py")
MEBIBYTE = 1 << 20


@dataclass(frozen=True)
class Limits:
    """seconds: wall clock, and CPU time of each process. output: bytes on standard output and error together."""

    seconds: float = 6.0
    memory: int = 1024 * MEBIBYTE
    file: int = 16 * MEBIBYTE
    output: int = 4 * MEBIBYTE


@dataclass(frozen=True)
class Run:
    """How a program ended. status: ``ok``, ``error`` (see exit_code), ``time`` or ``output`` (a limit was met)."""

    status: str
    exit_code: int
    stdout: bytes
    stderr: bytes
    seconds: float


def run(source: str, stdin: bytes = b"", limits: Limits | None = None) -> Run:
    """Run ``source`` as a Python program; when this returns, nothing of it is left.

    It starts in an empty folder that is removed afterwards, with an empty environment. The packages of this
    environment can be imported.
    """
    limits = limits or Limits()
    started = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="areal-sandbox-", ignore_cleanup_errors=True) as folder,
        tempfile.TemporaryFile() as feed,
    ):
        feed.write(stdin)
        feed.seek(0)
        program = Path(folder) / "program.py"
        program.write_text(source, encoding="utf-8", errors="surrogateescape")
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(_JAIL), _as_json(limits), sys.executable, "-I", str(program)],
            stdin=feed,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=folder,
            env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"},
            process_group=0,
        )
        try:
            status, stdout, stderr = _collect(process, limits, started)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            for pipe in (process.stdout, process.stderr):
                assert pipe is not None
                pipe.close()
    if status == "ok" and process.returncode:
        status = "error"
    return Run(status, process.returncode, stdout, stderr, time.monotonic() - started)


@cache
def isolation() -> dict[str, bool]:
    """Which of ``namespaces``, ``landlock`` and ``seccomp`` hold programs back on this machine, beside the limits."""
    done = subprocess.run([sys.executable, "-I", "-S", str(_JAIL), "--probe"], capture_output=True, check=True)
    return json.loads(done.stdout)


def _as_json(limits: Limits) -> str:
    cpu = max(1, int(limits.seconds) + 1)
    return json.dumps({"cpu_seconds": cpu, "memory_bytes": limits.memory, "file_bytes": limits.file})


def _collect(process: subprocess.Popen[bytes], limits: Limits, started: float) -> tuple[str, bytes, bytes]:
    """What the program writes until it ends or meets a limit."""
    said: dict[str, list[bytes]] = {"stdout": [], "stderr": []}
    left = limits.output
    with selectors.DefaultSelector() as selector:
        for name, pipe in (("stdout", process.stdout), ("stderr", process.stderr)):
            assert pipe is not None
            selector.register(pipe.fileno(), selectors.EVENT_READ, name)
        status = "ok"
        while selector.get_map():
            ready = selector.select(max(0.0, started + limits.seconds - time.monotonic()))
            if not ready:
                status = "time"
                break
            for key, _ in ready:
                chunk = os.read(key.fd, 65536)
                if not chunk:
                    selector.unregister(key.fd)
                said[key.data].append(chunk[:left])
                left -= len(chunk)
            if left < 0:
                status = "output"
                break
    if status == "ok":  # both pipes are closed, by the end of the program or by itself
        try:
            process.wait(max(0.0, started + limits.seconds - time.monotonic()))
        except subprocess.TimeoutExpired:
            status = "time"
    return status, b"".join(said["stdout"]), b"".join(said["stderr"])
