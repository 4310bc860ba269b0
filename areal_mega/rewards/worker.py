"""What a worker process of `areal_mega.rewards.workers` does.

It reads (verifier, response, prompt, seconds) and answers twice: when the clock may start, since loading a verifier is
no answer's fault, and with the score. A response can run sympy out of its mind: the pool kills this process then.
"""

from __future__ import annotations

import json
import os
import resource
import signal
from multiprocessing.connection import Connection
from typing import Any

from areal_mega.rewards.registry import load
from areal_mega.rewards.score import Score

STARTED = b"started"
# The pool's clock comes first; this one is for a worker whose pool is gone.
GRACE_SECONDS = 5.0
MEMORY = 8 << 30
_IDLE_SECONDS = 5.0


def main(descriptor: int) -> None:
    """Serve the pool at the other end of the socket until it is gone."""
    # What a verifier prints must not reach the run's standard output.
    os.dup2(2, 1)
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY if hard == resource.RLIM_INFINITY else min(MEMORY, hard), hard))
    parent = os.getppid()
    with Connection(descriptor) as pool:
        while True:
            # A process forked from the pool's may hold the other end open when the pool is long gone.
            while not pool.poll(_IDLE_SECONDS):
                if os.getppid() != parent:
                    return
            try:
                name, response, prompt, seconds = pool.recv()
            except EOFError:
                return
            pool.send_bytes(_answer(pool, name, response, prompt, seconds))


def _answer(pool: Connection, name: str, response: str, prompt: Any, seconds: float) -> bytes:
    """The score as JSON: what comes back from a process that read a model's text is never unpickled."""
    try:
        verify = load(name)
        pool.send_bytes(STARTED)
        signal.setitimer(signal.ITIMER_REAL, seconds + GRACE_SECONDS)
        score = Score.of(verify(response, prompt))
    except Exception as error:
        score = Score(0.0, note=f"{type(error).__name__}: {error}", failed=True)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    parts = {key: float(value) for key, value in score.parts.items()}
    return json.dumps([score.value, parts, score.note[:1000], score.failed]).encode()
