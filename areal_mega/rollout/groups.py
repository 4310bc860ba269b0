"""From a prompt to its group of samples, by the workflow of the run."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any

from areal_mega.config.derived import TELLS_EXPERTS
from areal_mega.config.errors import UserError
from areal_mega.config.options import RolloutOptions
from areal_mega.data.sample import Prompt, Sample
from areal_mega.rollout.client import GenerationClient
from areal_mega.rollout.pool import EnginePool
from areal_mega.rollout.proxy import ChatProxy
from areal_mega.rollout.session import Resources, Session
from areal_mega.rollout.tools import load_tools
from areal_mega.rollout.workflows import load_workflow

BLOCKING = 256


class GroupRunner:
    """Runs groups, any number at the same time; use it as an async context manager in the pool's event loop.

    Raises:
        UserError: the workflow or a tool does not exist.
    """

    def __init__(
        self,
        pool: EnginePool,
        tokenizer: Any,
        options: RolloutOptions,
        stop_tokens: Sequence[int],
        *,
        cuttable: bool = False,
    ) -> None:
        self._workflow = load_workflow(options.workflow)
        self._seeded = bool(options.sglang.get("enable_deterministic_inference"))
        self.client = GenerationClient(
            pool,
            options.request_timeout,
            lambda ids: tokenizer.decode(ids),
            cuttable=cuttable,
            routes=bool(options.sglang.get(TELLS_EXPERTS)),
        )
        tools = load_tools(options.tools, options)
        self._resources = Resources(self.client, tokenizer, options, tuple(stop_tokens), tools, ChatProxy())

    async def __aenter__(self) -> GroupRunner:
        # Agents and tools that block each hold a thread, most of the time to wait.
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(BLOCKING, "workflow"))
        await self.client.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._resources.proxy.close()
        await self.client.__aexit__(kind, error, trace)

    async def run(
        self, prompt: Prompt, key: Hashable, count: int, temperature: float, seed: str = "", max_new_tokens: int = 0
    ) -> list[Sample]:
        """The samples of ``count`` runs of the workflow.

        key: the group's, see `EnginePool.lease`. seed: makes them reproducible, see `Sampler.generate`.
        max_new_tokens: 0 is what the options say.

        Raises:
            EngineError: the engines failed.
            CutError: the group was cut, see `GenerationClient.cut`.
        """

        def session(index: int) -> Session:
            own = f"{seed}/{index}" if self._seeded else None
            return Session(self._resources, key, temperature, own, max_new_tokens)

        try:
            return await self._workflow.group(prompt, count, session)
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from failures.exceptions[0].__cause__
        finally:
            self.client.forget(key)


def check_lengths(prompts: Sequence[Prompt], options: RolloutOptions) -> None:
    """Raise `UserError` where a prompt is longer than ``rollout.max_prompt_tokens``."""
    limit = options.max_prompt_tokens
    for prompt in prompts:
        if len(prompt.tokens) > limit:
            raise UserError(
                f"Prompt {prompt.id} has {len(prompt.tokens)} tokens, more than "
                f"rollout.max_prompt_tokens={limit}; set that higher or remove the prompt."
            )
