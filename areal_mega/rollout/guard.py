"""Guard process of an engine: ``python -m areal_mega.rollout.guard COMMAND...``

The guard starts COMMAND in a process group of its own and ends that group as soon as the guard's parent is
gone, however it went (return, exception, Ctrl-C, SIGKILL), or closed the guard's standard input. The first
line on standard input is handed to COMMAND; keys travel there and never show in a process list.

The guard runs in its own session, out of reach of the terminal's Ctrl-C, and imports nothing heavy.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress

GRACE_SECONDS = 1.0


def main(command: list[str]) -> int:
    """Run `command` until it ends, the parent is gone or standard input closes; returns its exit status."""
    parent = os.pidfd_open(os.getppid())
    first_line = sys.stdin.buffer.readline()
    # SGLang names its sockets in TMPDIR and leaves them behind when it is killed.
    scratch = tempfile.mkdtemp(prefix="areal-engine-")
    # A guard told to stop must still take the engine with it: SystemExit runs the finally clauses.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        return _run_guarded(command, first_line, {**os.environ, "TMPDIR": scratch}, parent)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _run_guarded(command: list[str], first_line: bytes, environment: dict[str, str], parent: int) -> int:
    engine = subprocess.Popen(command, stdin=subprocess.PIPE, process_group=0, env=environment)
    try:
        assert engine.stdin is not None
        with suppress(BrokenPipeError), engine.stdin:  # an engine dead at once is reported by its exit status
            engine.stdin.write(first_line)
        # The pipe alone would not do: a child forked by the parent holds its other end too.
        select.select([sys.stdin, parent, os.pidfd_open(engine.pid)], [], [])
    finally:
        _end_group(engine)
    return engine.returncode


def _end_group(engine: subprocess.Popen[bytes]) -> None:
    """End the engine and its children: TERM first, KILL for what is left after the grace."""
    _signal_group(engine, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        engine.wait(GRACE_SECONDS)
    _signal_group(engine, signal.SIGKILL)
    engine.wait()


def _signal_group(engine: subprocess.Popen[bytes], number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(engine.pid, number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
