"""From prompts to finished samples."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from typing import Any, Protocol

from areal_mega.config.errors import UserError
from areal_mega.config.options import RolloutOptions
from areal_mega.data.sample import Prompt, Sample
from areal_mega.rollout.client import Generation, GenerationClient
from areal_mega.rollout.server import EngineError, SGLangServer

CONCURRENT_PROMPTS = 256
# Short, as Ctrl-C must not wait for an engine that hangs.
ABORT_SECONDS = 5.0


class Tokenizer(Protocol):
    """What the sampler needs of a Hugging Face tokenizer."""

    eos_token_id: int | None

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str: ...


class Sampler:
    """Draws samples from engines, which share the prompts."""

    def __init__(self, servers: Sequence[SGLangServer], tokenizer: Tokenizer, options: RolloutOptions) -> None:
        self._servers = servers
        self._tokenizer = tokenizer
        self._options = options
        self._seeded = bool(options.sglang.get("enable_deterministic_inference"))

    def generate(self, prompts: Sequence[Prompt], samples: int, temperature: float, seed: int = 0) -> list[Sample]:
        """``samples`` responses to each prompt, in the order of the prompts; ``group`` is the prompt's place.

        temperature: 0 is greedy. seed: makes the samples reproducible where SGLang can, that is on GPUs with
        ``rollout.sglang.enable_deterministic_inference``; else the engine's own random state is used, which
        was seeded at its start. If anything fails or interrupts this call, what is under way is aborted.

        Raises:
            UserError: a prompt is longer than ``rollout.max_prompt_tokens``, or the engine did not start.
            EngineError: the engine failed.
        """
        self._check_lengths(prompts)
        for server in self._servers:
            server.wait_ready()
        try:
            groups = asyncio.run(self._generate(prompts, samples, temperature, seed))
        except BaseException:
            for server in self._servers:
                with suppress(EngineError):
                    server.order("/abort_request", {"abort_all": True}, timeout=ABORT_SECONDS)
            raise
        return [
            self._sample(prompt, group, generation)
            for group, (prompt, generations) in enumerate(zip(prompts, groups, strict=True))
            for generation in generations
        ]

    def _check_lengths(self, prompts: Sequence[Prompt]) -> None:
        limit = self._options.max_prompt_tokens
        for prompt in prompts:
            if len(prompt.tokens) > limit:
                raise UserError(
                    f"Prompt {prompt.id} has {len(prompt.tokens)} tokens, more than "
                    f"rollout.max_prompt_tokens={limit}; set that higher or remove the prompt."
                )

    async def _generate(
        self, prompts: Sequence[Prompt], samples: int, temperature: float, seed: int
    ) -> list[list[Generation]]:
        sampling = self._sampling(temperature)
        async with AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(GenerationClient(s, CONCURRENT_PROMPTS)) for s in self._servers]
            async with _AllOrNothing() as tasks:
                running = [
                    tasks.create_task(
                        clients[group % len(clients)].generate(
                            prompt.tokens, self._of_group(sampling, samples, seed, group)
                        )
                    )
                    for group, prompt in enumerate(prompts)
                ]
        return [task.result() for task in running]

    def _sampling(self, temperature: float) -> dict[str, Any]:
        options = self._options
        greedy = temperature == 0
        sampling: dict[str, Any] = {
            "max_new_tokens": options.max_new_tokens,
            "temperature": temperature,
            "top_p": 1.0 if greedy else options.top_p,
            "top_k": 1 if greedy else options.top_k,
        }
        if self._tokenizer.eos_token_id is not None:
            sampling["stop_token_ids"] = [self._tokenizer.eos_token_id]
        if options.stop:
            # The text that matched was generated too: it belongs to the response.
            sampling |= {"stop": list(options.stop), "no_stop_trim": True}
        return sampling

    def _of_group(
        self, sampling: dict[str, Any], samples: int, seed: int, group: int
    ) -> dict[str, Any] | list[dict[str, Any]]:
        """The parameters of one prompt's samples; with SGLang's own ``n`` they would share one seed."""
        if not self._seeded:
            return sampling | {"n": samples}
        generator = random.Random(f"{seed}/{group}")
        return [sampling | {"sampling_seed": generator.getrandbits(31)} for _ in range(samples)]

    def _sample(self, prompt: Prompt, group: int, generation: Generation) -> Sample:
        before = len(prompt.tokens)
        return Sample(
            prompt=prompt,
            group=group,
            tokens=[*prompt.tokens, *generation.tokens],
            loss_mask=[False] * before + [True] * len(generation.tokens),
            behavior_logprobs=[0.0] * before + generation.logprobs,
            versions=[-1] * before + generation.versions,
            finish_reason=generation.finish_reason,
            text=self._tokenizer.decode(generation.tokens, skip_special_tokens=True),
        )


class _AllOrNothing(asyncio.TaskGroup):
    """A task group that raises its first failure itself, not a group of exceptions."""

    async def __aexit__(self, *details: Any) -> None:
        try:
            await super().__aexit__(*details)
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None
