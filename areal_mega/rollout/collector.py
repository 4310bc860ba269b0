"""Fills training batches: starts as many groups as staleness allows, judges and selects what comes, and counts all.

It is one code path for every mode. Synchronous is a staleness bound of 0: nothing is started for the next batch before
the weights that this one trained are there.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from areal_mega.config.errors import UserError
from areal_mega.config.options import RolloutOptions
from areal_mega.data.sample import Sample
from areal_mega.data.stream import PromptStream
from areal_mega.rollout.client import CutError
from areal_mega.rollout.groups import GroupRunner
from areal_mega.rollout.pool import EngineAddress, EnginePool
from areal_mega.rollout.selection import refusal
from areal_mega.rollout.staleness import StalenessManager

Judge = Callable[[Sequence[Sample]], None]


@dataclass(frozen=True)
class Place:
    """Where in the order of the prompts a run is: the next place, and earlier ones that were not trained on yet."""

    position: int = 0
    pending: tuple[int, ...] = ()


@dataclass(frozen=True)
class Batch:
    """samples: of `prompts_per_step` groups. place: where a run goes on that has trained on this batch."""

    samples: list[Sample]
    metrics: dict[str, float]
    place: Place


@dataclass(frozen=True)
class Setup:
    """What collecting takes. judge: sets the rewards of samples; it may block. seed: see `Sampler.generate`.

    All of it can be pickled, if the judge is a function that can be imported, or a partial of one.
    """

    engines: list[EngineAddress]
    tokenizer: Any
    options: RolloutOptions
    stop_tokens: tuple[int, ...]
    stream: PromptStream
    judge: Judge
    manager: StalenessManager
    place: Place
    seed: int


def group_runner(pool: EnginePool, setup: Setup) -> GroupRunner:
    """What runs the groups of a collector."""
    cuttable = setup.manager.spare > 0
    return GroupRunner(pool, setup.tokenizer, setup.options, setup.stop_tokens, cuttable=cuttable)


@dataclass
class _Group:
    """place: of its prompt. version: of the weights when it was started."""

    place: int
    version: int
    samples: list[Sample] = field(default_factory=list)


class Collector:
    """Lives in one event loop; `close` ends what is under way."""

    def __init__(self, runner: GroupRunner, setup: Setup) -> None:
        self._runner, self._stream, self._judge = runner, setup.stream, setup.judge
        self._options, self._manager, self._seed = setup.options, setup.manager, setup.seed
        self._again, self._position = sorted(setup.place.pending), setup.place.position
        self._running: dict[int, tuple[_Group, asyncio.Task[None]]] = {}
        self._unjudged: list[_Group] = []
        self._ready: list[_Group] = []
        self._judging: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, "judge")
        self._changed = asyncio.Event()
        self._failure: BaseException | None = None
        self._counts: Counter[str] = Counter()
        self._drawn = 0

    def publish(self, version: int) -> None:
        """The engines have new weights: more may be started."""
        self._manager.publish(version)
        self._fill()

    async def take(self) -> Batch:
        """The next batch, as soon as it is complete.

        Raises:
            UserError: so few groups are worth training on that the batch is never full.
            EngineError, VerifierError: the engines or the verifier failed.
        """
        began = time.monotonic()
        self._fill()
        while not self._complete():
            if self._failure:
                raise self._failure
            self._changed.clear()
            await self._changed.wait()
        self._ready.sort(key=lambda group: (group.version, group.place))
        batch = self._manager.batch
        taken, self._ready = self._ready[:batch], self._ready[batch:]
        self._manager.take()
        await self._cut_what_comes_too_late()
        metrics = self._metrics(taken, time.monotonic() - began)
        self._drawn = 0
        return Batch(_numbered(taken), metrics, self._place())

    async def close(self) -> None:
        """End all that is under way."""
        tasks = [task for _, task in self._running.values()]
        tasks += [self._judging] if self._judging else []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._thread.shutdown()

    def _fill(self) -> None:
        while self._manager.capacity and not self._failure:
            limit = self._options.selection.max_draws * self._manager.batch + self._manager.spare
            if self._drawn >= limit + self._manager.eta * self._manager.batch:
                self._fail(_too_few(self._counts, self._drawn))
                return
            self._start(self._again.pop(0) if self._again else self._next())

    def _next(self) -> int:
        self._position += 1
        return self._position - 1

    def _start(self, place: int) -> None:
        self._manager.start()
        self._drawn += 1
        group = _Group(place, self._manager.version)
        self._running[place] = (group, asyncio.create_task(self._run(group)))

    async def _run(self, group: _Group) -> None:
        prompt, max_new_tokens = self._stream.at(group.place)
        options = self._options
        try:
            group.samples = await self._runner.run(
                prompt,
                group.place,
                options.samples_per_prompt,
                options.temperature,
                f"{self._seed}/{group.place}",
                max_new_tokens,
            )
        except CutError:
            return  # whoever cut it has counted it
        except Exception as error:
            self._fail(error)
            return
        self._unjudged.append(group)
        if self._judging is None:
            self._judging = asyncio.create_task(self._judge_all())

    async def _judge_all(self) -> None:
        """Judge what is finished, and what is finished meanwhile; verifiers may block, so in a thread."""
        try:
            while self._unjudged:
                groups, self._unjudged = self._unjudged, []
                samples = [sample for group in groups for sample in group.samples]
                await asyncio.get_running_loop().run_in_executor(self._thread, self._judge, samples)
                for group in groups:
                    self._decide(group)
                self._fill()
                self._changed.set()
        except Exception as error:
            self._fail(error)
        finally:
            self._judging = None

    def _decide(self, group: _Group) -> None:
        if self._running.pop(group.place, None) is None:
            return  # it was cut in the very moment it was finished
        reason = refusal(group.samples, self._options.selection)
        if reason is None:
            self._manager.accept()
            self._ready.append(group)
        else:
            self._manager.reject()
            self._count_dropped(reason, group)

    def _complete(self) -> bool:
        """Whether there is a batch, and it leaves nothing behind that would come too late."""
        batch = self._manager.batch
        if self._failure or len(self._ready) < batch:
            return False
        versions = sorted(group.version for group in self._ready)
        return bool(self._manager.spare) or self._manager.in_time([*versions[batch:], *self._running_versions()])

    def _running_versions(self) -> list[int]:
        return [group.version for group, _ in self._running.values()]

    async def _cut_what_comes_too_late(self) -> None:
        """The oldest of what the batch left, until the rest comes in time. Only over-sampling leaves any."""
        while not self._manager.in_time([*(group.version for group in self._ready), *self._running_versions()]):
            running = [group for group, _ in self._running.values()]
            oldest = min([*self._ready, *running], key=lambda group: (group.version, group.place))
            if oldest in self._ready:
                self._ready.remove(oldest)
                self._manager.drop(1)
                self._count_dropped("surplus", oldest)
            else:
                await self._cut(oldest)

    async def _cut(self, group: _Group) -> None:
        _, task = self._running.pop(group.place)
        self._manager.reject()
        self._counts["tokens_wasted"] += await self._runner.client.cut(group.place)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        self._count_dropped("cut", group)

    def _count_dropped(self, reason: str, group: _Group) -> None:
        self._counts[f"groups_dropped_{reason}"] += 1
        self._counts["tokens_wasted"] += sum(sample.response_length for sample in group.samples)

    def _fail(self, error: BaseException) -> None:
        self._failure = self._failure or error
        self._changed.set()

    def _place(self) -> Place:
        """What is neither trained on nor dropped is drawn again by a run that goes on from here."""
        open_groups = [*self._ready, *(group for group, _ in self._running.values())]
        return Place(self._position, tuple(sorted([*self._again, *(group.place for group in open_groups)])))

    def _metrics(self, taken: Sequence[_Group], waited: float) -> dict[str, float]:
        """What the step did; counts are since the step before."""
        ages = [
            self._manager.version - version
            for group in taken
            for sample in group.samples
            for version in sample.versions
            if version >= 0
        ]
        metrics = {
            "rollout/wait_seconds": waited,
            "rollout/groups_drawn": float(self._drawn),
            "rollout/groups_running": float(len(self._running)),
            "rollout/groups_ready": float(len(self._ready)),
            "rollout/tokens_wasted": 0.0,
        }
        if ages:
            metrics |= {"rollout/staleness_mean": sum(ages) / len(ages), "rollout/staleness_max": float(max(ages))}
            metrics |= {f"rollout/staleness_{k}": n / len(ages) for k, n in sorted(Counter(ages).items())}
        metrics |= {f"rollout/{name}": float(n) for name, n in self._counts.items()}
        self._counts.clear()
        counts = self._runner.client.counts
        totals = {"resumed": counts.resumed, "resent": counts.resent}
        metrics |= {f"rollout/requests_{name}_total": float(n) for name, n in totals.items()}
        return metrics | self._runner.client.pool.metrics()


def _numbered(groups: Sequence[_Group]) -> list[Sample]:
    """The samples in the order of their prompts, which depends on nothing that happened; each with its group."""
    samples = []
    for number, group in enumerate(sorted(groups, key=lambda group: group.place)):
        for sample in group.samples:
            sample.group = number
            samples.append(sample)
    return samples


def _too_few(counts: Counter[str], drawn: int) -> UserError:
    dropped = ", ".join(
        f"{name.removeprefix('groups_dropped_')} {n}" for name, n in counts.items() if "dropped" in name
    )
    return UserError(
        f"{drawn} prompts were drawn for one batch, and too few of their groups are worth training on ({dropped}). "
        "Loosen rollout.selection, choose easier or harder prompts, or raise rollout.selection.max_draws."
    )
