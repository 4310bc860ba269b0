"""Rank 0's side of a run: the engine, the prompts, the verifier, and the new weights for the engine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from areal_mega.config.options import DataSetOptions, PPOOptions
from areal_mega.data import Prompt, Sample
from areal_mega.data.jsonl import endless_batches, read_prompts
from areal_mega.data.mixing import mixed, training_sets, validation_set
from areal_mega.data.tokenizer import load_tokenizer, stop_tokens
from areal_mega.policy.model import MegatronModel
from areal_mega.resharding.transport import FullWeightTransport
from areal_mega.rewards import check_answers, judge
from areal_mega.rollout.local_engines import LocalEngines
from areal_mega.rollout.sampler import Sampler
from areal_mega.rollout.server import SGLangServer


class Generation:
    """Prompts in, judged samples out, always from the weights that were published last."""

    def __init__(self, options: PPOOptions, device: str, directory: Path) -> None:
        """Read the data and start the engine; the first use waits until it answers. `close` ends it.

        Raises:
            UserError: a data set or the engine's options cannot be used.
        """
        self.options, self.version = options, 0
        tokenizer = load_tokenizer(options.model.path)
        limit = options.rollout.max_prompt_tokens
        skip = options.data.unusable == "skip"

        def read(name: str, how: DataSetOptions) -> list[Prompt]:
            prompts = read_prompts(how.path, name, tokenizer, limit, how, skip)
            return check_answers(prompts, options.reward, name, skip)

        sets = training_sets(options.data)
        train = mixed([read(name, how) for name, how in sets], [how.weight for _, how in sets])
        self.held_out: list[Prompt] = []
        if options.data.validation:
            self.held_out = read("data.validation", validation_set(options.data))
        self._train = train
        self.seek(0)
        self.server = SGLangServer(
            options.model.path,
            options.rollout,
            dtype=options.model.dtype,
            device=device,
            seed=options.seed,
            log_path=directory / "engine.log",
        )
        stops = stop_tokens(options.model.path, tokenizer)
        self._sampler = Sampler(LocalEngines([self.server]), tokenizer, options.rollout, stops)
        self._transport = FullWeightTransport(self.server)

    def seek(self, position: int) -> None:
        """Go on behind the first ``position`` training prompts, counted over all passes."""
        o = self.options
        self.position = position
        self._prompts: Iterator[list[Prompt]] = endless_batches(
            self._train, o.rollout.prompts_per_step, o.data.shuffle, o.seed, position
        )

    def next_samples(self) -> list[Sample]:
        """Judged samples of the next training prompts, a group for each prompt."""
        rollout = self.options.rollout
        self.position += rollout.prompts_per_step
        return self._judged(next(self._prompts), rollout.samples_per_prompt, rollout.temperature)

    def evaluate(self) -> list[Sample]:
        """Judged samples of all held-out prompts."""
        evaluation = self.options.evaluation
        return self._judged(self.held_out, evaluation.samples, evaluation.temperature)

    def publish(self, policy: MegatronModel, version: int) -> None:
        """Bring the policy's weights into the engine as ``version``."""
        self._transport.send(policy.export(), version)
        self.version = version

    def close(self) -> None:
        """Stop the engine."""
        self.server.close()

    def _judged(self, prompts: list[Prompt], samples: int, temperature: float) -> list[Sample]:
        """Judged samples of the published weights.

        Raises:
            RuntimeError: the engine answered with other weights.
        """
        seed = self.options.seed * 1_000_003 + self.version
        answers = self._sampler.generate(prompts, samples, temperature, seed)
        versions = {v for a in answers for v, generated in zip(a.versions, a.loss_mask, strict=True) if generated}
        if versions - {self.version}:
            raise RuntimeError(f"the engine sampled with weights {sorted(versions)}, expected {self.version}")
        judge(answers, self.options.reward)
        return answers
