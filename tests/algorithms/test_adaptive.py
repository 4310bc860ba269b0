import json
import math
import statistics

import pytest
import torch

from areal_mega.algorithms.adaptive import Adaptive, KLCoefficient, ValueNorm


def alone(x):
    return x


def test_the_kl_coefficient_goes_towards_the_target():
    kl, expected = KLCoefficient(0.1, target=6.0, horizon=1000), 0.1
    for measured, error in ((6.3, 0.05), (60.0, 0.2), (0.0, -0.2), (6.0, 0.0)):
        kl.update(measured, samples=50)
        expected *= 1 + error * 50 / 1000
        assert kl.coef == pytest.approx(expected, rel=1e-12)


def test_without_a_target_the_coefficient_stays():
    kl = KLCoefficient(0.1)
    kl.update(100.0, 50)
    assert kl.coef == 0.1


def test_value_norm_has_the_decayed_moments_of_all_returns():
    g = torch.Generator().manual_seed(0)
    batches = [torch.randn(n, generator=g) * 3 + 100 for n in (5, 9, 2)]
    norm, beta = ValueNorm(0.9), 0.9
    for batch in batches:
        norm.update(batch, alone)
    weights = [(1 - beta) * beta ** (2 - i) for i in range(3)]
    means = [statistics.fmean(b.tolist()) for b in batches]
    squares = [statistics.fmean(x * x for x in b.tolist()) for b in batches]
    mean, square = (sum(w * x for w, x in zip(weights, xs, strict=True)) / sum(weights) for xs in (means, squares))
    deviation = math.sqrt(square - mean**2)
    x = torch.tensor([90.0, 100.0, 112.0], dtype=torch.float64)
    torch.testing.assert_close(norm.normalize(x), (x - mean) / deviation, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(norm.denormalize(norm.normalize(x)), x, rtol=1e-12, atol=0)


def test_value_norm_over_ranks_is_that_of_the_whole():
    x = torch.linspace(-3, 8, 11)
    whole, part = ValueNorm(0.9), ValueNorm(0.9)
    sums = []
    whole.update(x, lambda s: sums.append(s) or s)
    part.update(x[:4], lambda s: sums[0])  # the sum over the ranks
    assert part == whole


def test_a_value_norm_without_returns_changes_nothing():
    norm, x = ValueNorm(0.9), torch.tensor([1.5, -2.0])
    norm.update(torch.zeros(0), alone)
    assert norm.normalize(x).tolist() == norm.denormalize(x).tolist() == x.tolist()


def test_equal_returns_are_not_blown_up():
    norm = ValueNorm(0.9)
    norm.update(torch.zeros(4), alone)
    assert norm.normalize(torch.tensor([0.0, 1.0])).tolist() == pytest.approx([0.0, 10.0])


def test_the_state_comes_back_bit_for_bit():
    ours = Adaptive(KLCoefficient(0.1, 6.0), ValueNorm(0.99))
    ours.kl.update(7.1, 64)
    ours.value_norm.update(torch.randn(7, generator=torch.Generator().manual_seed(0)), alone)
    theirs = Adaptive(KLCoefficient(0.1, 6.0), ValueNorm(0.99))
    theirs.restore(json.loads(json.dumps(ours.state())))
    assert theirs == ours


def test_the_options_of_a_resumed_run_hold():
    saved = Adaptive(KLCoefficient(0.1, 6.0), ValueNorm(0.99)).state()
    fixed = Adaptive(KLCoefficient(0.3), ValueNorm(0.5))
    fixed.restore(saved)
    assert fixed.kl.coef == 0.3 and fixed.value_norm.decay == 0.5
    fixed.restore({})  # of a run that had nothing adaptive
    assert fixed.kl.coef == 0.3
