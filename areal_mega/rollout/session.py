"""What a workflow is given: generation by token ids, the model's chat format, tools, and the limits of a sample."""

from __future__ import annotations

import random
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from areal_mega.config.options import RolloutOptions
from areal_mega.rollout.chat import ChatFormat
from areal_mega.rollout.client import Generation, GenerationClient
from areal_mega.rollout.sampling import Sampling
from areal_mega.rollout.tools import ToolBox

if TYPE_CHECKING:
    from areal_mega.rollout.proxy import ChatProxy


@dataclass(frozen=True)
class Resources:
    """What all sessions of a process share. proxy: started by the first that asks for it."""

    client: GenerationClient
    tokenizer: Any
    options: RolloutOptions
    stop_tokens: tuple[int, ...]
    tools: ToolBox
    proxy: ChatProxy

    @cached_property
    def chat(self) -> ChatFormat:
        return ChatFormat(self.tokenizer)


class Session:
    """One sample's, or with `generate_many` one group's, access to the engines.

    key: what keeps requests together on one engine, see `EnginePool.lease`; a group's samples share it.
    """

    def __init__(
        self, resources: Resources, key: Hashable, temperature: float, seed: str | None = None, max_new_tokens: int = 0
    ) -> None:
        """seed: makes the samples reproducible, see `Sampler.generate`. max_new_tokens: 0 is what the options say."""
        self.resources, self.key, self.temperature = resources, key, temperature
        self.options, self.tokenizer, self.tools = resources.options, resources.tokenizer, resources.tools
        self._max_new_tokens = max_new_tokens or self.options.max_new_tokens
        self._seeds = None if seed is None else random.Random(seed)

    @property
    def chat(self) -> ChatFormat:
        """The model's chat template.

        Raises:
            UserError: it has none.
        """
        return self.resources.chat

    @property
    def max_tokens(self) -> int:
        """Tokens a whole sample may have: the longest prompt and the longest response together."""
        return self.options.max_prompt_tokens + self.options.max_new_tokens

    def room(self, tokens: Sequence[int]) -> int:
        """How many tokens may still be generated behind these."""
        return max(0, min(self._max_new_tokens, self.max_tokens - len(tokens)))

    def text(self, tokens: Sequence[int], special: bool = False) -> str:
        """What the ids say; special: with the tokens that are no text, such as those that mark tool calls."""
        return self.tokenizer.decode(list(tokens), skip_special_tokens=not special)

    async def generate(self, tokens: Sequence[int], *, max_new_tokens: int | None = None) -> Generation:
        """The model's continuation; with no room left an empty one that ended for its length.

        max_new_tokens: a limit below ``rollout.max_new_tokens``. The temperature and the stops are the options':
        what is trained is the distribution that is sampled from.

        Raises:
            EngineError: the engines failed.
        """
        return (await self._generate(tokens, 1, max_new_tokens))[0]

    async def generate_many(self, tokens: Sequence[int], count: int) -> list[Generation]:
        """So many continuations, which share the work on the prompt."""
        return await self._generate(tokens, count, None)

    async def _generate(self, tokens: Sequence[int], count: int, limit: int | None) -> list[Generation]:
        room = self.room(tokens) if limit is None else min(limit, self.room(tokens))
        if room <= 0:
            return [Generation([], [], [], "length")] * count
        sampling = Sampling.of(self.options, self.temperature, self.resources.stop_tokens)
        sampling = replace(sampling, max_new_tokens=room)
        each = [sampling] * count
        if self._seeds:
            each = [replace(sampling, seed=self._seeds.getrandbits(31)) for _ in range(count)]
        return await self.resources.client.generate(tokens, each, self.key)
