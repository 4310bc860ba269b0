"""Prompts and finished trajectories."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Prompt:
    """One problem. One line of a data set.

    answer: the reference answer; solutions: further answers that are as right. task: what kind of problem it is,
    which names a verifier. source: file and line it was read from, for messages.
    """

    id: str
    tokens: list[int]
    text: str
    answer: str
    metadata: dict[str, Any] = field(default_factory=dict)
    solutions: tuple[str, ...] = ()
    task: str = ""
    source: str = ""

    @property
    def references(self) -> tuple[str, ...]:
        """Every answer that is right."""
        return (self.answer, *self.solutions)


@dataclass
class Sample:
    """One finished trajectory, all facts from the engine.

    tokens: prompt and response. loss_mask: True on generated tokens. behavior_logprobs: the engine's log-prob
    of each generated token, 0 elsewhere. versions: the weights that produced each token, -1 elsewhere.
    finish_reason: ``stop`` or ``length``. text: the response as text. reward_parts: what the reward is made of,
    by name. greedy_reward: what the greedy response to the same prompt is worth, where ReMax asks for it.
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

    @property
    def truncated(self) -> bool:
        return self.finish_reason == "length"

    @property
    def response_length(self) -> int:
        return sum(self.loss_mask)
