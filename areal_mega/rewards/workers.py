"""A pool of verifier processes that can be killed: an answer that hangs costs its time limit and not more.

Threads cannot be stopped, alarms do not fire inside C code, and a shared executor waits for its slowest task. So each
worker is a process of its own with one answer at a time and a deadline for it; one that misses the deadline, or dies,
is replaced, and its answer counts as failed.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import wait

from areal_mega.data.sample import Prompt
from areal_mega.rewards.score import Score
from areal_mega.rewards.worker import STARTED
from areal_mega.runtime.child import start_child

# Starting Python and loading a verifier, on a machine that is busy with other things.
_LOAD_SECONDS = 180.0


@dataclass(frozen=True)
class Job:
    """One answer to judge by the named verifier, within so many seconds."""

    verifier: str
    response: str
    prompt: Prompt
    seconds: float


class VerifierPool:
    """Up to ``size`` workers, started when there is work for them. Use it from one thread; `close` ends it."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._idle: list[_Worker] = []
        self._busy: list[_Worker] = []

    def score(self, jobs: Sequence[Job]) -> list[Score]:
        """The scores of the jobs, in their order; failed ones are wrong, and say why."""
        scores: list[Score | None] = [None] * len(jobs)
        for index, score in self.scores(jobs):
            scores[index] = score
        return [score for score in scores if score is not None]

    def scores(self, jobs: Sequence[Job]) -> Iterator[tuple[int, Score]]:
        """Each job's index and score, as soon as it is there."""
        waiting = deque(enumerate(jobs))
        try:
            while waiting or self._busy:
                while waiting and (self._idle or len(self._busy) < self._size):
                    worker = self._idle.pop() if self._idle else _Worker()
                    worker.start(*waiting.popleft())
                    self._busy.append(worker)
                yield from self._finished()
        finally:  # the caller left early: what is under way is of no use any more
            for worker in self._busy:
                worker.kill()
            self._busy.clear()

    def close(self) -> None:
        """End the workers."""
        for worker in [*self._idle, *self._busy]:
            worker.kill()
        self._idle.clear()
        self._busy.clear()

    def _finished(self) -> list[tuple[int, Score]]:
        """Wait for the first score or deadline."""
        first = min(worker.deadline for worker in self._busy)
        ready = wait([worker.connection for worker in self._busy], max(0.0, first - time.monotonic()))
        now, done, busy = time.monotonic(), [], []
        for worker in self._busy:
            score = worker.read() if worker.connection in ready else None
            if score is None and now >= worker.deadline:
                score = worker.give_up()
            if score is None:
                busy.append(worker)
                continue
            done.append((worker.index, score))
            if worker.alive:
                self._idle.append(worker)
        self._busy = busy
        return done


class _Worker:
    """One process and its answer under way."""

    def __init__(self) -> None:
        self._process, self.connection = start_child("areal_mega.rewards.worker")
        self.alive = True
        self.index, self.deadline, self._seconds = -1, 0.0, 0.0

    def start(self, index: int, job: Job) -> None:
        self.index, self._seconds, self._started = index, job.seconds, False
        self.deadline = time.monotonic() + _LOAD_SECONDS
        with suppress(BrokenPipeError, ConnectionResetError):  # it died: reading says so
            self.connection.send((job.verifier, job.response, job.prompt, job.seconds))

    def read(self) -> Score | None:
        """The score, if that is what came; None when the clock has only just started."""
        try:
            message = self.connection.recv_bytes()
        except (EOFError, OSError):
            self.kill()
            return Score(0.0, note=f"the verifier died ({_exit(self._process.returncode)})", failed=True)
        if message == STARTED:
            self._started, self.deadline = True, time.monotonic() + self._seconds
            return None
        value, parts, note, failed = json.loads(message)
        return Score(value, parts, note, failed)

    def give_up(self) -> Score:
        self.kill()
        why = f"not judged within {self._seconds:g} seconds" if self._started else "its verifier did not load"
        return Score(0.0, note=why, failed=True)

    def kill(self) -> None:
        self.alive = False
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self.connection.close()


def _exit(status: int | None) -> str:
    return f"signal {-status}" if status is not None and status < 0 else f"exit {status}"
