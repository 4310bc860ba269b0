"""Prompts and finished trajectories."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Prompt:
    """One problem. One line of a data set.

    answer: the reference answer; solutions: further answers that are as right. task: what kind of problem it is,
    which names a verifier. source: file and line it was read from, for messages. messages: the same problem as a
    conversation, for workflows that go on with it.
    """

    id: str
    tokens: list[int]
    text: str
    answer: str
    metadata: dict[str, Any] = field(default_factory=dict)
    solutions: tuple[str, ...] = ()
    task: str = ""
    source: str = ""
    messages: list[dict[str, Any]] = field(default_factory=list)

    @property
    def references(self) -> tuple[str, ...]:
        """Every answer that is right."""
        return (self.answer, *self.solutions)


@dataclass(frozen=True)
class Turn:
    """What the model said at one go: ``tokens[start:end]`` of its sample, and the reward for this turn alone."""

    start: int
    end: int
    reward: float = 0.0


@dataclass
class Sample:
    """One finished trajectory, all facts from the engine.

    tokens: prompt and response. loss_mask: True on generated tokens. behavior_logprobs: the engine's log-prob
    of each generated token, 0 elsewhere. versions: the weights that produced each token, -1 elsewhere.
    finish_reason: ``stop`` or ``length``. text: the response as text, which is judged. reward_parts: what the reward
    is made of, by name. greedy_reward: what the greedy response to the same prompt is worth, where ReMax asks for it.

    turns: what was generated, turn by turn; their rewards come on top of ``reward``, which is for the whole.
    outcome: how well it went, from 0 to 1, where the workflow knows; None leaves that to the verifier.
    facts: numbers the workflow reports, by name; their means are metrics.
    routes: ``[n, layers * k]`` int16, the experts that the engine chose for the first n tokens, where it tells them.
    """

    prompt: Prompt
    group: int
    tokens: list[int]
    loss_mask: list[bool]
    behavior_logprobs: list[float]
    versions: list[int]
    finish_reason: str
    text: str
    reward: float = 0.0
    greedy_reward: float = 0.0
    correct: bool = False
    reward_parts: dict[str, float] = field(default_factory=dict)
    turns: list[Turn] = field(default_factory=list)
    outcome: float | None = None
    facts: dict[str, float] = field(default_factory=dict)
    routes: np.ndarray | None = field(default=None, compare=False)

    @property
    def turn_rewards(self) -> list[float]:
        """One entry per token: each turn's reward on its last token, 0 elsewhere."""
        rewards = [0.0] * len(self.tokens)
        for turn in self.turns:
            rewards[turn.end - 1] += turn.reward
        return rewards

    @property
    def oldest_version(self) -> int:
        """The oldest weights that produced a token of it; -1 where the engine named none."""
        return min((v for v, generated in zip(self.versions, self.loss_mask, strict=True) if generated), default=-1)

    @property
    def truncated(self) -> bool:
        return self.finish_reason == "length"

    @property
    def response_length(self) -> int:
        return sum(self.loss_mask)
