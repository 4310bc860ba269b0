"""A sample under construction: tokens are only ever added, each with where it came from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from areal_mega.data.sample import Prompt, Sample, Turn
from areal_mega.rollout.client import Generation


class Trajectory:
    """Begins with the prompt's tokens, or with others that stand for it."""

    def __init__(self, prompt: Prompt, tokens: Sequence[int] | None = None) -> None:
        self.prompt = prompt
        self.tokens = list(prompt.tokens if tokens is None else tokens)
        self._loss_mask = [False] * len(self.tokens)
        self._logprobs = [0.0] * len(self.tokens)
        self._versions = [-1] * len(self.tokens)
        self._routes: np.ndarray | None = None
        self._turns: list[Turn] = []
        self._finish_reason = "stop"

    def said(self, generation: Generation, reward: float = 0.0) -> None:
        """The model generated this turn. reward: what this turn alone earns."""
        start = len(self.tokens)
        self.tokens += generation.tokens
        self._loss_mask += [True] * len(generation.tokens)
        self._logprobs += generation.logprobs
        self._versions += generation.versions
        self._finish_reason = generation.finish_reason
        if generation.routes is not None and len(generation.routes) == len(self.tokens) - 1:
            self._routes = generation.routes
        if generation.tokens:
            self._turns.append(Turn(start, len(self.tokens), reward))

    def seen(self, tokens: Sequence[int]) -> None:
        """The model was shown these: no loss on them, no weights produced them."""
        self.tokens += tokens
        self._loss_mask += [False] * len(tokens)
        self._logprobs += [0.0] * len(tokens)
        self._versions += [-1] * len(tokens)

    def reward_turn(self, reward: float) -> None:
        """Set the reward of the last turn, known only now."""
        last = self._turns[-1]
        self._turns[-1] = Turn(last.start, last.end, reward)

    def sample(self, text: str, *, finish_reason: str | None = None, outcome: float | None = None) -> Sample:
        """The finished sample; see `Sample` for the arguments. Its group is the caller's to give.

        Raises:
            ValueError: nothing was generated, so there is nothing to learn from.
        """
        if not self._turns:
            raise ValueError(f"nothing was generated for prompt {self.prompt.id}")
        return Sample(
            prompt=self.prompt,
            group=0,
            tokens=list(self.tokens),
            loss_mask=list(self._loss_mask),
            behavior_logprobs=list(self._logprobs),
            versions=list(self._versions),
            finish_reason=finish_reason or self._finish_reason,
            text=text,
            turns=list(self._turns),
            outcome=outcome,
            routes=self._routes,
        )
