import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from areal_mega.algorithms.advantages import group_advantages, last_generated, token_rewards, whiten
from areal_mega.data import PackedBatch


def batch(masks, rewards):
    rows = [{"tokens": [1] * len(m), "loss_mask": m} for m in masks]
    return PackedBatch.pack(rows, {"reward": torch.tensor(rewards)})


def test_the_reward_stands_on_the_last_generated_token():
    b = batch([[False, True, True], [False, True, False]], [2.0, 3.0])
    assert last_generated(b).tolist() == [2, 4]
    assert token_rewards(b).tolist() == [0, 0, 2, 0, 3, 0]


def test_the_kl_penalty_counts_on_generated_tokens_only():
    b = batch([[False, True, True]], [2.0])
    kl = torch.tensor([float("nan"), 0.5, 1.0])
    assert token_rewards(b, kl, 0.1).tolist() == pytest.approx([0, -0.05, 1.9])


def test_a_sequence_without_generated_tokens_is_refused():
    with pytest.raises(ValueError, match="no generated token"):
        last_generated(batch([[False, False]], [1.0]))


@given(st.lists(st.lists(st.floats(-5, 5), min_size=2, max_size=6), min_size=1, max_size=5), st.booleans())
def test_group_advantages_match_the_formula(groups, divide):
    rewards = torch.tensor([r for g in groups for r in g], dtype=torch.float64)
    index = torch.tensor([10 * i for i, g in enumerate(groups) for _ in g])
    expected = [(r - statistics.fmean(g)) / (statistics.stdev(g) + 1e-6 if divide else 1) for g in groups for r in g]
    got = group_advantages(rewards.float(), index, divide)
    scale = 1e-4 * max(1.0, max(map(abs, expected)))
    # A group of nearly equal rewards divides rounding errors by 1e-6.
    near = [not divide or statistics.stdev(g) > 1e-3 or len(set(g)) == 1 for g in groups for _ in g]
    for g, e, ok in zip(got.tolist(), expected, near, strict=True):
        assert not ok or g == pytest.approx(e, abs=scale)


def test_equal_rewards_teach_nothing():
    assert group_advantages(torch.ones(4), torch.zeros(4), True).tolist() == [0, 0, 0, 0]


def test_whitening_over_ranks_equals_whitening_of_the_whole():
    torch.manual_seed(0)
    x, mask = torch.randn(50) * 3 + 1e4, torch.rand(50) > 0.3
    expected = (x[mask].double() - x[mask].double().mean()) / x[mask].double().std()
    # What each rank would send, added up, is what an all-reduce would return.
    parts = [slice(0, 20), slice(20, 50)]
    first = [torch.stack([mask[p].sum().double(), x[p][mask[p]].double().sum()]) for p in parts]
    total = first[0] + first[1]
    mean = total[1] / total[0]
    second = sum((x[p][mask[p]].double() - mean).square().sum() for p in parts)
    replies = iter([total, second[None], total, second[None]])
    got = torch.cat([whiten(x[p], mask[p], lambda t: next(replies)) for p in parts])
    torch.testing.assert_close(got[mask].double(), expected, rtol=1e-6, atol=1e-6)
    assert got[~mask].abs().max() == 0


def test_constant_advantages_stay_finite():
    x = torch.full((8,), 1e6)
    assert whiten(x, torch.ones(8, dtype=torch.bool), lambda t: t).tolist() == [0.0] * 8
