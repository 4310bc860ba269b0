"""How answers are judged."""

from __future__ import annotations

from dataclasses import dataclass

from areal_mega.config.options.fields import group, option

VERIFIER_NAMES = (
    "exact_match", "final_number", "math", "choice", "code", "reasoning_gym", "http",
    "think_format", "answer_format", "think_answer_format", "boxed_format",
)  # fmt: skip


@dataclass
class HttpOptions:
    url: str | None = option(None, "Address the verifier http sends responses to (docs/rewards.md).")
    timeout: float = option(30.0, "Seconds one request may take.", above=0)
    attempts: int = option(3, "Requests for one score before it counts as failed.", minimum=1)
    concurrency: int = option(64, "Requests at the same time.", minimum=1)


@dataclass
class RewardOptions:
    name: str = option(
        "exact_match",
        f"Verifier of the answer: {', '.join(VERIFIER_NAMES)}, your own as package.module:function, or task: the one "
        "the problem's task names.",
    )
    scale: float = option(1.0, "Reward of a right answer.")
    wrong: float = option(0.0, "Reward of a wrong answer.")
    truncated: float | None = option(None, "Reward of a response cut at max_new_tokens; null: judge it.")
    require: list[str] = option([], "Verifiers that must say 1 too, or the answer is wrong: [think_answer_format].")
    extra: dict[str, float] = option({}, "More verifiers, whose scores times these weights are added to the reward.")
    workers: int = option(2, "Processes that judge answers.", minimum=1)
    time_limit: float | None = option(
        None, "Seconds an answer may take to judge, then it is wrong; null: the verifier's own limit.", above=0
    )
    http: HttpOptions = group(HttpOptions, "The server of the verifier http.")
