"""Rank 0's side of a run: the engine, the prompts, the verifier, and the new weights for the engine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from areal_mega.config.options import DataSetOptions, PPOOptions
from areal_mega.data import Prompt, Sample
from areal_mega.data.jsonl import read_prompts
from areal_mega.data.mixing import mixed, training_sets, validation_set
from areal_mega.data.stream import PromptStream
from areal_mega.data.tokenizer import load_tokenizer, stop_tokens
from areal_mega.policy.model import MegatronModel
from areal_mega.resharding.transport import FullWeightTransport
from areal_mega.rewards import check_answers, judge
from areal_mega.rollout.collector import Batch, Place, Setup
from areal_mega.rollout.collector_process import RemoteCollector
from areal_mega.rollout.local_collector import LocalCollector
from areal_mega.rollout.local_engines import LocalEngines
from areal_mega.rollout.sampler import Sampler
from areal_mega.rollout.server import SGLangServer
from areal_mega.rollout.staleness import StalenessManager


class Generation:
    """Prompts in, judged samples out, of weights that are at most ``options.staleness`` versions old."""

    def __init__(self, options: PPOOptions, device: str, directory: Path) -> None:
        """Read the data and start the engine; the first use waits until it answers. `close` ends it.

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
        self.server = SGLangServer(
            options.model.path,
            options.rollout,
            dtype=options.model.dtype,
            device=device,
            seed=options.seed,
            log_path=directory / "engine.log",
        )
        self._stop_tokens = stop_tokens(options.model.path, self._tokenizer)
        self._engines = LocalEngines([self.server])
        self._sampler = Sampler(self._engines, self._tokenizer, options.rollout, self._stop_tokens)
        self._transport = FullWeightTransport(self.server)
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
        return batch

    def evaluate(self) -> list[Sample]:
        """Judged samples of all held-out prompts; generation for training goes on meanwhile."""
        evaluation, seed = self.options.evaluation, self.options.seed * 1_000_003 + self.version
        source = self._collector if isinstance(self._collector, RemoteCollector) else None
        generate = source.evaluate if source else self._sampler.generate
        samples = generate(self.held_out, evaluation.samples, evaluation.temperature, seed)
        self._check_versions(samples, oldest=self.version)
        judge(samples, self.options.reward)
        return samples

    def publish(self, policy: MegatronModel, version: int) -> None:
        """Bring the policy's weights into the engine as ``version``; what is under way goes on with them."""
        with self._paused():
            self._transport.send(policy.export(), version)
        self.version = version
        if self._collector:
            self._collector.publish(version)

    def close(self) -> None:
        """Stop the engine."""
        if self._collector:
            self._collector.close()
        self.server.close()

    @contextmanager
    def _paused(self) -> Iterator[None]:
        if isinstance(self._collector, LocalCollector) or self._collector is None:
            yield  # nothing is under way
            return
        self.server.order("/pause_generation", {"mode": "retract"})
        yield
        self.server.order("/continue_generation")

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
            engines=self._engines.addresses,
            tokenizer=self._tokenizer,
            options=rollout,
            stop_tokens=self._stop_tokens,
            stream=self._stream,
            judge=partial(judge, options=o.reward),
            manager=manager,
            place=self.place,
            seed=o.seed,
        )
        self._engines.wait_ready()
        return RemoteCollector(setup, self._engines) if o.staleness else LocalCollector(setup, self._engines)

    def _check_versions(self, samples: list[Sample], oldest: int) -> None:
        versions = {v for s in samples for v, generated in zip(s.versions, s.loss_mask, strict=True) if generated}
        if versions and (min(versions) < oldest or max(versions) > self.version):
            raise RuntimeError(
                f"the engine sampled with weights {sorted(versions)}, expected {oldest} to {self.version}"
            )
