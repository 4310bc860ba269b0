"""How tokens are drawn, and when a response has ended."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from areal_mega.config.options import RolloutOptions


@dataclass(frozen=True)
class Sampling:
    """SGLang's sampling parameters, for one response.

    temperature: 0 is greedy. stop_tokens: any of them ends the response and belongs to it. stop: so does a text.
    seed: makes the response reproducible where SGLang can, see `Sampler.generate`.
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    stop_tokens: tuple[int, ...] = ()
    stop: tuple[str, ...] = ()
    seed: int | None = None

    @classmethod
    def of(cls, options: RolloutOptions, temperature: float, stop_tokens: Sequence[int]) -> Sampling:
        """What ``rollout`` says, at a temperature."""
        return cls(
            options.max_new_tokens, temperature, options.top_p, options.top_k, tuple(stop_tokens), tuple(options.stop)
        )

    def after(self, tokens: int) -> Sampling:
        """The parameters of what is left when so many tokens of the response are there."""
        return replace(self, max_new_tokens=self.max_new_tokens - tokens)

    def body(self) -> dict[str, Any]:
        """The parameters by SGLang's names."""
        greedy = self.temperature == 0
        body: dict[str, Any] = {
            "max_new_tokens": self.max_new_tokens,
            "temperature": self.temperature,
            "top_p": 1.0 if greedy else self.top_p,
            "top_k": 1 if greedy else self.top_k,
        }
        if self.stop_tokens:
            body["stop_token_ids"] = list(self.stop_tokens)
        if self.stop:
            # The text that matched was generated too: it belongs to the response.
            body |= {"stop": list(self.stop), "no_stop_trim": True}
        if self.seed is not None:
            body["sampling_seed"] = self.seed
        return body

    def ended(self, tokens: Sequence[int], decode: Callable[[list[int]], str]) -> str | None:
        """``stop`` or ``length`` when the response is complete with these tokens, else None.

        The engine says so itself, but for a response it aborted in the very step that completed it.
        """
        if tokens and tokens[-1] in self.stop_tokens:
            return "stop"
        if self.stop and any(text in decode(list(tokens)) for text in self.stop):
            return "stop"
        return "length" if len(tokens) >= self.max_new_tokens else None
