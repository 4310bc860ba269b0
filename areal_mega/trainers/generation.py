"""Rank 0's side of a run: the engines, the prompts and the verifier."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, wait
from functools import partial
from pathlib import Path
from typing import Any

from areal_mega.config.options import DataSetOptions, PPOOptions
from areal_mega.data import Prompt, Sample
from areal_mega.data.jsonl import read_prompts
from areal_mega.data.mixing import mixed, training_sets, validation_set
from areal_mega.data.stream import PromptStream
from areal_mega.data.tokenizer import load_tokenizer, stop_tokens
from areal_mega.resharding.deployment import Deployment
from areal_mega.rewards import check_answers, judge
from areal_mega.rollout.collector import Batch, Place, Setup
from areal_mega.rollout.collector_process import RemoteCollector
from areal_mega.rollout.local_collector import LocalCollector
from areal_mega.rollout.local_engines import LocalEngines, Send
from areal_mega.rollout.sampler import Sampler
from areal_mega.rollout.server import SGLangServer
from areal_mega.rollout.staleness import StalenessManager

# How long an engine that was started again waits until it is seen.
_LOOK_SECONDS = 0.1


class Generation:
    """Prompts in, judged samples out, of weights that are at most ``options.staleness`` versions old."""

    def __init__(self, options: PPOOptions, device: str, directory: Path, deployment: Deployment) -> None:
        """Read the data and start the engines; the first use waits until they answer. `close` ends them.

        deployment: which devices they take.

        Raises:
            UserError: a data set or the engine's options cannot be used.
        """
        self.options, self.version, self.place = options, 0, Place()
        self._tokenizer = load_tokenizer(options.model.path)
        limit = options.rollout.max_prompt_tokens
        skip = options.data.unusable == "skip"

        def read(name: str, how: DataSetOptions) -> list[Prompt]:
            prompts = read_prompts(how.path, name, self._tokenizer, limit, how, skip)
            return check_answers(prompts, options.reward, name, skip)

        sets = training_sets(options.data)
        train = mixed([read(name, how) for name, how in sets], [how.weight for _, how in sets])
        self._stream = PromptStream(train, options.data.shuffle, options.seed, options.data.curriculum)
        self.held_out: list[Prompt] = []
        if options.data.validation:
            self.held_out = read("data.validation", validation_set(options.data))
        self.engines = [
            SGLangServer(
                options.model.path,
                options.rollout,
                dtype=options.model.dtype,
                device=device,
                seed=options.seed + number,
                log_path=directory / ("engine.log" if number == 0 else f"engine-{number}.log"),
                devices=None if device == "cpu" else deployment.local_devices(number),
            )
            for number in range(options.rollout.engines)
        ]
        self._stop_tokens = stop_tokens(options.model.path, self._tokenizer)
        self._local = LocalEngines(self.engines, options.resharding.restarts)
        self._sampler = Sampler(self._local, self._tokenizer, options.rollout, self._stop_tokens)
        self._collector: LocalCollector | RemoteCollector | None = None

    def seek(self, position: int, pending: list[int]) -> None:
        """Go on behind the first ``position`` training prompts, but for those of them that are pending."""
        self.place = Place(position, tuple(pending))

    @property
    def progress(self) -> dict[str, Any]:
        """What `seek` takes to go on from here."""
        return {"position": self.place.position, "pending": list(self.place.pending)}

    def next_batch(self) -> Batch:
        """Judged samples of the next training prompts, a group for each prompt.

        Raises:
            RuntimeError: the engine answered with weights it should not have.
        """
        if self._collector is None:
            self._collector = self._start_collector()
        batch = self._collector.take()
        self._check_versions(batch.samples, oldest=self.version - self.options.staleness)
        self.place = batch.place
        batch.metrics.update(self._local.metrics())
        if self.options.algorithm.advantage == "remax":
            self._add_greedy_rewards(batch.samples)
        return batch

    def evaluate(self) -> list[Sample]:
        """Judged samples of all held-out prompts; generation for training goes on meanwhile."""
        if not self.held_out:
            return []
        evaluation = self.options.evaluation
        return self._judged(self.held_out, evaluation.samples, evaluation.temperature)

    def publish(self, version: int, send: Send) -> None:
        """Have new weights sent to all engines that are there; what was under way goes on with them."""
        self._local.give_weights(send)
        self.version = version
        if self._collector:
            self._collector.publish(version)

    def readmit(self, engines: Sequence[int], send: Send) -> None:
        """Have the weights of the current version sent to engines that `until_done` named: they serve again."""
        self._local.give_weights(send, engines)

    def until_done(self, work: Future[Any]) -> list[int]:
        """Return nothing when the work is done, or the engines that wait for weights meanwhile.

        Raises:
            Exception: what the work raised.
        """
        while not work.done():
            if returned := self._local.returned():
                return returned
            wait([work], _LOOK_SECONDS)
        work.result()
        return []

    def close(self) -> None:
        """Stop the engines."""
        if self._collector:
            self._collector.close()
        self._local.close()

    def _add_greedy_rewards(self, samples: list[Sample]) -> None:
        """ReMax's baseline: what the greedy response of the published weights to each prompt is worth."""
        prompts = {sample.group: sample.prompt for sample in samples}
        greedy = self._judged(list(prompts.values()), 1, 0.0)
        worth = {group: sample.reward for group, sample in zip(prompts, greedy, strict=True)}
        for sample in samples:
            sample.greedy_reward = worth[sample.group]

    def _judged(self, prompts: list[Prompt], samples: int, temperature: float) -> list[Sample]:
        """Judged samples of the published weights, in the order of the prompts."""
        seed = self.options.seed * 1_000_003 + self.version
        source = self._collector if isinstance(self._collector, RemoteCollector) else self._sampler
        answers = source.generate(prompts, samples, temperature, seed)
        self._check_versions(answers, oldest=self.version)
        judge(answers, self.options.reward)
        return answers

    def _start_collector(self) -> LocalCollector | RemoteCollector:
        o, rollout = self.options, self.options.rollout
        spare = round((rollout.selection.oversample - 1) * rollout.prompts_per_step)
        batches = (1 + o.staleness) * rollout.prompts_per_step + spare
        manager = StalenessManager(
            batch=rollout.prompts_per_step,
            eta=o.staleness,
            max_running=rollout.max_running or batches,
            version=self.version,
            spare=spare,
            steps=o.steps,
        )
        setup = Setup(
            engines=self._local.addresses,
            tokenizer=self._tokenizer,
            options=rollout,
            stop_tokens=self._stop_tokens,
            stream=self._stream,
            judge=partial(judge, options=o.reward),
            manager=manager,
            place=self.place,
            seed=o.seed,
        )
        self._local.wait_ready()
        return RemoteCollector(setup, self._local) if o.staleness else LocalCollector(setup, self._local)

    def _check_versions(self, samples: list[Sample], oldest: int) -> None:
        versions = {v for s in samples for v, generated in zip(s.versions, s.loss_mask, strict=True) if generated}
        if versions and (min(versions) < oldest or max(versions) > self.version):
            raise RuntimeError(
                f"the engine sampled with weights {sorted(versions)}, expected {oldest} to {self.version}"
            )
