"""Rank 0's side of a run: the engines, the prompts and the verifier."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from areal_mega.config.options import DataSetOptions, PPOOptions
from areal_mega.data import Prompt, Sample
from areal_mega.data.jsonl import endless_batches, read_prompts
from areal_mega.data.mixing import mixed, training_sets, validation_set
from areal_mega.data.tokenizer import load_tokenizer
from areal_mega.resharding.deployment import Deployment
from areal_mega.rewards import check_answers, judge
from areal_mega.rollout.sampler import Sampler
from areal_mega.rollout.server import SGLangServer


class Generation:
    """Prompts in, judged samples out, always from the weights that were published last.

    version: of these weights.
    """

    def __init__(self, options: PPOOptions, device: str, directory: Path, deployment: Deployment) -> None:
        """Read the data and start the engines; the first use waits until they answer. `close` ends them.

        deployment: which devices they take.

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
        self._sampler = Sampler(self.engines, tokenizer, options.rollout)

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
        prompts = next(self._prompts)
        samples = self._judged(prompts, rollout.samples_per_prompt, rollout.temperature)
        if self.options.algorithm.advantage == "remax":
            greedy = [sample.reward for sample in self._judged(prompts, 1, 0.0)]
            for sample in samples:
                sample.greedy_reward = greedy[sample.group]
        return samples

    def evaluate(self) -> list[Sample]:
        """Judged samples of all held-out prompts."""
        evaluation = self.options.evaluation
        return self._judged(self.held_out, evaluation.samples, evaluation.temperature)

    def close(self) -> None:
        """Stop the engines."""
        for engine in self.engines:
            engine.close()

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
