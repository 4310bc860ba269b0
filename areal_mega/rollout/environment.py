"""What the model talks with in `areal_mega.rollout.workflows.multi_turn`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from areal_mega.data.sample import Prompt
from areal_mega.rollout.chat import Message


@dataclass(frozen=True)
class Step:
    """An environment's answer to a turn.

    messages: for the model's chat template; or a text that stands behind the model's turn as it is, for models that
    have no template. done: there is no next turn. reward: of the turn that was answered, on top of the reward of the
    whole. outcome: of the whole, from 0 to 1, where the environment knows it; None leaves it to the verifier, which
    judges the last turn.
    """

    messages: list[Message] | str = field(default_factory=list)
    done: bool = False
    reward: float = 0.0
    outcome: float | None = None


class Environment(Protocol):
    """One for each sample: ``rollout.environment`` names a class or function that makes it of the prompt."""

    async def step(self, said: str) -> Step:
        """Answer what the model said."""


class MakeEnvironment(Protocol):
    def __call__(self, prompt: Prompt) -> Environment: ...
