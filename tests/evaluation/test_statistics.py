"""Each number against its definition: enumeration of subsets, bootstrap, simulation."""

from itertools import combinations
from statistics import fmean

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from areal_mega.evaluation.statistics import RIGHT, confidence_interval, majority_at_k, pass_at_k


@given(st.lists(st.booleans(), min_size=1, max_size=9), st.data())
def test_pass_at_k_is_the_share_of_subsets_with_a_right_sample(samples, data):
    k = data.draw(st.integers(1, len(samples)))
    by_definition = fmean(any(subset) for subset in combinations(samples, k))
    assert pass_at_k(len(samples), sum(samples), k) == pytest.approx(by_definition, abs=1e-12)


@given(st.lists(st.sampled_from([RIGHT, "a", "b", "c", None]), min_size=1, max_size=9), st.data())
def test_majority_at_k_is_the_mean_over_subsets(votes, data):
    k = data.draw(st.integers(1, len(votes)))
    assert majority_at_k(votes, k) == pytest.approx(fmean(map(elected, combinations(votes, k))), abs=1e-12)


def elected(votes):
    """How likely the right answer wins these votes."""
    said = [vote for vote in votes if vote is not None]
    most = max((said.count(vote) for vote in said), default=0)
    winners = {vote for vote in said if said.count(vote) == most}
    return (RIGHT in winners) / len(winners) if winners else 0.0


def test_majority_of_many_samples_is_fast_and_between_0_and_1():
    votes = [RIGHT] * 20 + [f"wrong {i}" for i in range(44)]
    assert majority_at_k(votes, 64) == pytest.approx(1)
    assert majority_at_k(votes, 1) == pytest.approx(20 / 64)
    assert 20 / 64 < majority_at_k(votes, 16) < 1


def test_interval_agrees_with_a_bootstrap_of_problems():
    rng = np.random.default_rng(0)
    rates = rng.binomial(16, rng.beta(0.7, 0.9, 400)) / 16
    means = [rng.choice(rates, len(rates)).mean() for _ in range(20_000)]
    low, high = confidence_interval(rates.tolist(), 0.95)
    assert np.allclose([low, high], np.quantile(means, [0.025, 0.975]), atol=2e-3)


def test_interval_covers_the_truth_as_often_as_it_says():
    """Answers to one problem hang together: an interval that took them for independent would be too short by far."""
    rng = np.random.default_rng(1)
    truth, covered, naive = 0.7 / 1.6, 0, 0
    for _ in range(2000):
        rates = rng.binomial(16, rng.beta(0.7, 0.9, 60)) / 16
        low, high = confidence_interval(rates.tolist(), 0.95)
        covered += low <= truth <= high
        naive += abs(rates.mean() - truth) < 1.96 * (rates.mean() * (1 - rates.mean()) / 60 / 16) ** 0.5
    assert 0.92 < covered / 2000 < 0.97
    assert naive / 2000 < 0.6


def test_interval_where_all_answers_are_alike():
    low, high = confidence_interval([1.0] * 30, 0.95)
    assert high == 1 and low**30 == pytest.approx(0.025)
    assert confidence_interval([0.0] * 30, 0.95) == pytest.approx((0, 1 - low))
    assert confidence_interval([0.5], 0.95) is None
