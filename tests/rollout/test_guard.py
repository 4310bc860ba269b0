"""Nothing the guard started outlives the guard's parent, however the parent goes."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

# The command: two processes that ignore SIGTERM, and tell their ids.
COMMAND = """
    import os, signal, sys, time
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.fork()
    os.write(1, f"{os.getpid()} {sys.stdin.readline().strip()}\\n".encode())
    time.sleep(600)
"""

# The trainer: starts the guard as the server does, and forks a child that keeps the guard's pipe open.
PARENT = """
    import os, signal, subprocess, sys, time
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
    guard = subprocess.Popen(
        [sys.executable, "-m", "areal_mega.rollout.guard", sys.executable, "-c", sys.argv[1]],
        stdin=subprocess.PIPE, start_new_session=True,
    )
    guard.stdin.write(b"hello\\n")
    guard.stdin.flush()
    if os.fork() == 0:
        os.close(1)
        time.sleep(30)
        os._exit(0)
    os.write(1, f"{guard.pid} guard\\n".encode())
    time.sleep(600)
"""


def is_alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_no_orphans(number):
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(PARENT), textwrap.dedent(COMMAND)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    try:
        lines = [parent.stdout.readline().split(maxsplit=1) for _ in range(3)]
        pids = [int(line[0]) for line in lines]
        assert sorted(line[1].strip() for line in lines if len(line) > 1) == ["guard", "hello"]
        assert all(map(is_alive, pids))

        parent.send_signal(number)
        parent.wait()

        deadline = time.monotonic() + 10
        while any(map(is_alive, pids)) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not any(map(is_alive, pids))
    finally:
        os.killpg(parent.pid, signal.SIGKILL)
