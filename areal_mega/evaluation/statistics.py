"""What n answers to each of N problems say about a model: pass@1 and how sure it is, pass@k, majority@k."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import comb
from statistics import NormalDist, fmean, stdev

import numpy as np

RIGHT = "\0right"  # what right answers vote for, however they are written


def confidence_interval(rates: Sequence[float], confidence: float) -> tuple[float, float] | None:
    """Limits of the mean of ``rates``, the share of right answers to each problem.

    The normal approximation with standard errors clustered by problem (Miller, "Adding Error Bars to Evals",
    arXiv 2411.00640): with as many answers to each problem it is that of the mean of the rates. It is for other
    problems of the same kind, not only for other answers to these. Where all answers are right, or all wrong, the
    deviation says nothing, and the limits are the exact ones of one answer to each problem (Clopper and Pearson, 1934).
    None for one problem with answers of both kinds.
    """
    problems, mean = len(rates), fmean(rates)
    if mean in (0.0, 1.0):
        far = ((1 - confidence) / 2) ** (1 / problems)
        return (0.0, 1 - far) if mean == 0 else (far, 1.0)
    if problems == 1:
        return None
    half = NormalDist().inv_cdf((1 + confidence) / 2) * stdev(rates) / problems**0.5
    return max(0.0, mean - half), min(1.0, mean + half)


def pass_at_k(samples: int, right: int, k: int) -> float:
    """Probability that k of a problem's samples contain a right one, 1 - C(n - c, k) / C(n, k): unbiased.

    Source: Chen et al., "Evaluating Large Language Models Trained on Code", arXiv 2107.03374, equation 1.
    """
    return 1 - comb(samples - right, k) / comb(samples, k)


def majority_at_k(votes: Sequence[str | None], k: int) -> float:
    """Probability that the right answer has the most votes among k of a problem's samples, drawn without replacement.

    A tie is decided by lot. Source of the vote: Wang et al., "Self-Consistency", arXiv 2203.11171.

    votes: of each sample its answer, `RIGHT` where that is right, None where it has none.
    """
    counts = Counter(vote for vote in votes if vote is not None)
    right, silent = counts.pop(RIGHT, 0), sum(vote is None for vote in votes)
    won = 0.0
    for drawn in range(1, min(right, k) + 1):
        rest = k - drawn
        ways = np.zeros((rest + 1, rest // drawn + 1))  # [other samples drawn, answers among them that tie]
        ways[0, 0] = 1
        for count in counts.values():
            ways = _with_answer(ways, count, drawn)
        others = sum(comb(silent, i) * ways[rest - i] for i in range(min(silent, rest) + 1))
        won += comb(right, drawn) * float((others / np.arange(1, ways.shape[1] + 1)).sum())
    return won / comb(len(votes), k)


def _with_answer(ways: np.ndarray, count: int, most: int) -> np.ndarray:
    """The ways with those to draw one more answer, which has ``count`` votes, up to ``most`` times."""
    total = ways.copy()
    for i in range(1, min(count, most, len(ways) - 1) + 1):
        ties = int(i == most)
        total[i:, ties:] += comb(count, i) * ways[: len(ways) - i, : ways.shape[1] - ties]
    return total
