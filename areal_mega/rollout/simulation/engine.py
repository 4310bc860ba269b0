"""An engine that generates on paper."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from heapq import heappop, heappush
from itertools import count

from areal_mega.rollout.simulation.costs import Costs


class SimulatedEngine:
    """Sequences that all get a token in each step; what does not fit into the cache waits.

    Time passes in `advance`, in stretches during which the same sequences run. running: how many there may be at once.
    """

    def __init__(self, costs: Costs, running: int) -> None:
        self.costs, self.most = costs, max(1, running)
        self.now = self.busy = 0.0
        self.next_end = float("inf")  # when the first of the running sequences ends
        self.load = 0
        self._steps = 0.0  # tokens that a sequence which always ran would have
        self._context = 0.0
        self._running: list[tuple[float, int, int, Hashable]] = []  # by the step they end at
        self._waiting: deque[tuple[int, int, Hashable]] = deque()
        self._order = count()

    def start(self, name: Hashable, prompt: int, length: int) -> None:
        """A sequence of so many tokens behind a prompt of so many; `advance` must have been called."""
        self.load += 1
        self._waiting.append((prompt, length, name))
        self._admit()
        self._reckon()

    def advance(self, now: float) -> None:
        """To a moment at or before `next_end`."""
        elapsed, self.now = now - self.now, max(now, self.now)
        if elapsed <= 0 or not self._running:
            return
        self.busy += elapsed
        most = self._running[0][0] - self._steps
        steps = min(most, elapsed / self._seconds(most))
        self._steps += steps
        self._context += steps * len(self._running)
        self._reckon()

    def end(self) -> Hashable:
        """The name of the sequence that ends now, at `next_end`."""
        self.advance(self.next_end)
        end, _, whole, name = heappop(self._running)
        self._steps = end
        self._context -= whole
        self.load -= 1
        self._admit()
        self._reckon()
        return name

    def stand_still(self, seconds: float) -> None:
        """For an update of the weights: a pause, and the cache is computed anew."""
        if self._running:
            self.now += seconds + self.costs.prefill(self._context)
            self._reckon()

    def _admit(self) -> None:
        while self._waiting and len(self._running) < self.most:
            prompt, length, name = self._waiting.popleft()
            self._context += prompt
            heappush(self._running, (self._steps + length, next(self._order), prompt + length, name))

    def _reckon(self) -> None:
        steps = self._running[0][0] - self._steps if self._running else float("inf")
        self.next_end = self.now + steps * self._seconds(steps) if self._running else steps

    def _seconds(self, steps: float) -> float:
        """Of one step, on average over the next so many."""
        sequences = len(self._running)
        return self.costs.decode(sequences, self._context + sequences * steps / 2)
