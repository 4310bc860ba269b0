"""Which finished groups are worth training on."""

from __future__ import annotations

from collections.abc import Sequence

from areal_mega.config.options import SelectionOptions
from areal_mega.data.sample import Sample

REASONS = ("empty", "uniform", "too_hard", "too_easy")


def refusal(samples: Sequence[Sample], options: SelectionOptions) -> str | None:
    """Why a judged group is left out, one of `REASONS`; None where it is not.

    ``uniform``: all outcomes are equal, so every group-relative advantage is 0 (DAPO, arXiv:2503.14476, section 3.2).
    """
    if not samples:
        return "empty"
    outcomes = [sample.reward_parts.get("answer", float(sample.correct)) for sample in samples]
    success = sum(outcomes) / len(outcomes)
    if success < options.min_success:
        return "too_hard"
    if success > options.max_success:
        return "too_easy"
    if options.mixed and min(outcomes) == max(outcomes):
        return "uniform"
    return None
