"""Engines and trainers of a run, event by event."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from areal_mega.rollout.simulation.costs import Costs
from areal_mega.rollout.simulation.engine import SimulatedEngine
from areal_mega.rollout.staleness import StalenessManager


@dataclass(frozen=True)
class Cluster:
    """A run's sizes.

    engines: of costs.tensor GPUs each. trainers: GPUs that train. colocated: they are the engines' GPUs, which then
    generate and train in turns; that needs eta=0. eta: bound of the staleness; 0 is synchronous. prompts, samples: of a
    batch, and of a prompt. update: seconds in which an engine stands still for new weights.
    """

    costs: Costs
    engines: int
    trainers: int
    eta: int
    prompts: int
    samples: int
    prompt_tokens: int = 512
    mean_length: float = 8192
    update: float = 3.0
    colocated: bool = False

    @property
    def gpus(self) -> int:
        return self.trainers if self.colocated else self.trainers + self.engines * self.costs.tensor


@dataclass
class Outcome:
    """Means over the measured steps. Seconds; tokens of prompts and responses trained on; shares of the time in which
    trainers do not train, and engines have nothing to generate; versions between a sample's start and its training."""

    step_seconds: float
    tokens_per_second: float
    trainer_idle: float
    engine_idle: float
    staleness_mean: float
    staleness_max: int


@dataclass
class _Group:
    version: int
    lengths: list[int]
    left: int


@dataclass
class _Record:
    ends: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    training: list[float] = field(default_factory=list)
    busy: list[float] = field(default_factory=list)
    ages: list[list[int]] = field(default_factory=list)


def simulate(cluster: Cluster, lengths: Iterator[int], steps: int, warmup: int = 2) -> Outcome:
    """Run so many steps, and measure those after the first ``warmup``.

    lengths: of the responses, as they are started.
    """
    run = _Run(cluster, lengths)
    while len(run.record.ends) < steps + warmup:
        run.advance()
    return run.outcome(warmup)


class _Run:
    def __init__(self, cluster: Cluster, lengths: Iterator[int]) -> None:
        c = cluster
        self.cluster, self.lengths = c, lengths
        most = c.costs.cache_tokens // int(c.prompt_tokens + c.mean_length)
        self.engines = [SimulatedEngine(c.costs, most) for _ in range(c.engines)]
        self.manager = StalenessManager(c.prompts, c.eta, max_running=(c.eta + 2) * c.prompts)
        self.running: list[_Group] = []
        self.finished: list[_Group] = []
        self.now, self.trained_at = 0.0, float("inf")
        self.record = _Record()
        self.fill()

    def advance(self) -> None:
        """To the next event: a sample ends, or a training step does."""
        engine = min(self.engines, key=lambda e: e.next_end)
        if self.trained_at <= engine.next_end:
            self.now, self.trained_at = self.trained_at, float("inf")
            self.publish()
        else:
            self.now = engine.next_end
            group = engine.end()
            assert isinstance(group, _Group)
            group.left -= 1
            if not group.left:
                self.running.remove(group)
                self.finished.append(group)
                self.manager.accept()
        self.train()
        self.fill()

    def fill(self) -> None:
        """Start what may be started; a group stays on one engine."""
        while self.manager.capacity:
            self.manager.start()
            lengths = [next(self.lengths) for _ in range(self.cluster.samples)]
            group = _Group(self.manager.version, lengths, len(lengths))
            self.running.append(group)
            engine = min(self.engines, key=lambda e: e.load)
            engine.advance(self.now)
            for length in lengths:
                engine.start(group, self.cluster.prompt_tokens, length)

    def train(self) -> None:
        """Begin a training step on the oldest groups, where there are enough and the others can wait for theirs."""
        batch = self.cluster.prompts
        if self.trained_at < float("inf") or len(self.finished) < batch:
            return
        self.finished.sort(key=lambda group: group.version)
        taken, left = self.finished[:batch], self.finished[batch:]
        if not self.manager.in_time([g.version for g in [*left, *self.running]]):
            return
        self.finished = left
        self.manager.take()
        samples = [self.cluster.prompt_tokens + n for group in taken for n in group.lengths]
        seconds = self.cluster.costs.train(samples, self.cluster.trainers)
        self.trained_at = self.now + seconds
        self.record.tokens.append(sum(samples))
        self.record.training.append(seconds)
        self.record.ages.append([self.manager.version - group.version for group in taken])

    def publish(self) -> None:
        self.manager.publish(self.manager.version + 1)
        for engine in self.engines:
            engine.advance(self.now)
            engine.stand_still(self.cluster.update)
        if not self.running:  # nobody hides the update
            self.now += self.cluster.update
        self.record.ends.append(self.now)
        self.record.busy.append(sum(engine.busy for engine in self.engines))

    def outcome(self, warmup: int) -> Outcome:
        record = self.record
        first, last = record.ends[warmup - 1], record.ends[-1]
        steps = len(record.ends) - warmup
        elapsed = last - first
        ages = [age for step in record.ages[warmup : warmup + steps] for age in step]
        busy = (record.busy[-1] - record.busy[warmup - 1]) / len(self.engines)
        return Outcome(
            step_seconds=elapsed / steps,
            tokens_per_second=sum(record.tokens[warmup : warmup + steps]) / elapsed,
            trainer_idle=max(0.0, 1 - sum(record.training[warmup : warmup + steps]) / elapsed),
            engine_idle=max(0.0, 1 - busy / elapsed),
            staleness_mean=sum(ages) / len(ages),
            staleness_max=max(ages),
        )
