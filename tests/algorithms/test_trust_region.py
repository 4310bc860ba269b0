import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from areal_mega.algorithms.trust_region import second_moment_mask


def alone(x):
    return x


def slow_mask(log_ratios, advantages, mask, threshold):
    """The largest goes, until the mean is small enough."""
    kept, inside = [True] * len(mask), {}
    for t, (x, a, m) in enumerate(zip(log_ratios, advantages, mask, strict=True)):
        if m and x * a > 0:
            inside[t] = x * x
    while inside and statistics.fmean(inside.values()) > threshold:
        largest = max(inside, key=inside.__getitem__)
        kept[largest] = False
        del inside[largest]
    return kept


@given(st.integers(0, 10_000), st.integers(1, 60), st.sampled_from([1e-3, 0.04, 0.2, 10.0]))
def test_the_largest_ratios_go_until_the_mean_is_small(seed, n, threshold):
    g = torch.Generator().manual_seed(seed)
    log_ratios, advantages = torch.randn(n, generator=g) * 0.5, torch.randn(n, generator=g)
    mask = torch.rand(n, generator=g) < 0.7
    expected = slow_mask(log_ratios.tolist(), advantages.tolist(), mask.tolist(), threshold)
    assert second_moment_mask(log_ratios, advantages, mask, threshold, alone).tolist() == expected


def test_nothing_goes_of_samples_that_are_not_stale():
    x, mask = torch.zeros(5), torch.ones(5, dtype=torch.bool)
    assert second_moment_mask(x, torch.ones(5), mask, 0.04, alone).all()


def test_what_is_masked_or_cannot_be_clipped_stays():
    log_ratios = torch.tensor([float("nan"), 3.0, -3.0, 0.1, 3.0])
    advantages = torch.tensor([1.0, -1.0, 1.0, 1.0, 1.0])
    mask = torch.tensor([False, True, True, True, True])
    assert second_moment_mask(log_ratios, advantages, mask, 0.04, alone).tolist() == [True, True, True, True, False]


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 1, 2, 0]])
def test_equal_ratios_go_together(order):
    log_ratios = torch.tensor([0.5, 0.5, 0.1, 0.1])[order]
    kept = second_moment_mask(log_ratios, torch.ones(4), torch.ones(4, dtype=torch.bool), 0.1, alone)
    assert kept.tolist() == torch.tensor([False, False, True, True])[order].tolist()
