"""From prompts to finished samples, while the caller waits."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from areal_mega.config.options import RolloutOptions
from areal_mega.data.sample import Prompt, Sample
from areal_mega.rollout.groups import GroupRunner, check_lengths
from areal_mega.rollout.local_engines import LocalEngines


class Sampler:
    """Draws samples from engines of this process."""

    def __init__(
        self, engines: LocalEngines, tokenizer: Any, options: RolloutOptions, stop_tokens: Sequence[int]
    ) -> None:
        self._engines, self._tokenizer = engines, tokenizer
        self._options, self._stop_tokens = options, stop_tokens

    def generate(self, prompts: Sequence[Prompt], samples: int, temperature: float, seed: int = 0) -> list[Sample]:
        """The samples of ``samples`` runs with each prompt, in the order of the prompts; ``group`` is its place.

        temperature: 0 is greedy. seed: makes the samples reproducible where SGLang can, that is on GPUs with
        ``rollout.sglang.enable_deterministic_inference``; else the engine's own random state is used, which
        was seeded at its start. If anything fails or interrupts this call, what is under way is aborted.

        Raises:
            UserError: a prompt is longer than ``rollout.max_prompt_tokens``, or the engine did not start.
            EngineError: the engine failed.
        """
        check_lengths(prompts, self._options)
        self._engines.wait_ready()
        try:
            return asyncio.run(self._generate(prompts, samples, temperature, seed))
        except BaseException:
            self._engines.abort_all()
            raise

    async def _generate(self, prompts: Sequence[Prompt], samples: int, temperature: float, seed: int) -> list[Sample]:
        pool = self._engines.pool(self._options.engine_wait)
        async with (
            GroupRunner(pool, self._tokenizer, self._options, self._stop_tokens) as runner,
            _AllOrNothing() as tasks,
        ):
            groups = [
                tasks.create_task(runner.run(prompt, group, samples, temperature, f"{seed}/{group}"))
                for group, prompt in enumerate(prompts)
            ]
        finished = []
        for group, task in enumerate(groups):
            for sample in task.result():
                sample.group = group
                finished.append(sample)
        return finished


class _AllOrNothing(asyncio.TaskGroup):
    """A task group that raises its first failure itself, not a group of exceptions."""

    async def __aexit__(self, *details: Any) -> None:
        try:
            await super().__aexit__(*details)
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from failures.exceptions[0].__cause__
