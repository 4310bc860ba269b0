import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ranks import on_ranks

from areal_mega.algorithms.advantages import (
    last_generated,
    normalize,
    normalize_tokens,
    overlong_penalty,
    sample_advantages,
    token_rewards,
)
from areal_mega.data import PackedBatch


def batch(masks, groups=None):
    rows = [{"tokens": [1] * len(m), "loss_mask": m} for m in masks]
    packed = PackedBatch.pack(rows, {"group": torch.tensor(groups or [0] * len(masks))})
    return packed.with_counts(groups=float(max(groups or [0]) + 1))


def test_the_reward_stands_on_the_last_generated_token():
    b = batch([[False, True, True], [False, True, False]])
    assert last_generated(b).tolist() == [2, 4]
    assert token_rewards(b, torch.tensor([2.0, 3.0])).tolist() == [0, 0, 2, 0, 3, 0]


def test_the_kl_penalty_counts_on_generated_tokens_only():
    b = batch([[False, True, True]])
    kl = torch.tensor([float("nan"), 0.5, 1.0])
    assert token_rewards(b, torch.tensor([2.0]), kl, 0.1).tolist() == pytest.approx([0, -0.05, 1.9])


def test_a_sequence_without_generated_tokens_has_no_reward():
    b = batch([[False, False], [False, True]])
    assert token_rewards(b, torch.tensor([2.0, 3.0])).tolist() == [0, 0, 0, 3]


GROUPS = st.lists(st.lists(st.floats(-5, 5, width=32), min_size=2, max_size=6), min_size=1, max_size=5)


def expected_advantages(groups, estimator, reward_std):
    every = [r for g in groups for r in g]
    for g in groups:
        std = {"group": statistics.stdev(g), "batch": statistics.stdev(every), "none": 1 - 1e-6}[reward_std]
        for i, r in enumerate(g):
            if estimator == "grpo":
                yield (r - statistics.fmean(g)) / (std + 1e-6)
            else:
                yield r - statistics.fmean(g[:i] + g[i + 1 :])


@given(GROUPS, st.sampled_from([("grpo", "group"), ("grpo", "batch"), ("grpo", "none"), ("rloo", "group")]))
def test_advantages_of_groups_match_the_formula(groups, how):
    rewards = torch.tensor([r for g in groups for r in g], dtype=torch.float64)
    index = torch.tensor([i for i, g in enumerate(groups) for _ in g])
    got = sample_advantages(rewards, index, *how)
    # A group of nearly equal rewards divides rounding errors by 1e-6.
    assert got.tolist() == pytest.approx(list(expected_advantages(groups, *how)), rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("reward", [0.1, 1e6])
def test_equal_rewards_teach_nothing(reward):
    for estimator in ("grpo", "rloo"):
        got = sample_advantages(torch.full((3,), reward), torch.zeros(3, dtype=torch.int64), estimator, "group")
        assert got.tolist() == [0, 0, 0]


def test_advantages_without_a_group():
    rewards, groups = torch.tensor([1.0, 0.0]), torch.tensor([0, 0])
    assert sample_advantages(rewards, groups, "reinforce", "group").tolist() == [1, 0]
    assert sample_advantages(rewards, groups, "remax", "group", torch.tensor([0.0, 1.0])).tolist() == [1, -1]


@pytest.mark.parametrize("level", ["batch", "group", "mixed"])
def test_normalisation_over_ranks_is_that_of_the_whole(level):
    g = torch.Generator().manual_seed(0)
    lengths, groups = [5, 9, 3, 7, 6, 8], [0, 1, 0, 2, 1, 2]
    whole = batch([[False] + [t % 3 > 0 for t in range(n - 1)] for n in lengths], groups)
    x = torch.randn(whole.num_tokens, generator=g, dtype=torch.float64) * 3 + 1e4
    whole = whole.with_fields(x=x)
    tokens = [v[m].tolist() for v, m in zip(whole.unpack("x"), whole.unpack("loss_mask"), strict=True)]
    every = [v for row in tokens for v in row]
    by_group = {i: [v for row, j in zip(tokens, groups, strict=True) for v in row if i == j] for i in groups}
    expected = []
    for row, i in zip(tokens, groups, strict=True):
        mean = statistics.fmean(every if level == "batch" else by_group[i])
        std = statistics.stdev(by_group[i] if level == "group" else every)
        expected += [(v - mean) / (std + 1e-8) for v in row]

    for split in ([[0, 1, 2, 3, 4, 5]], [[3, 0], [1, 2, 5, 4]], [[0], [5, 4, 3], [2, 1]]):
        parts = [whole.select(indices) for indices in split]

        def on_rank(rank, all_reduce, parts=parts):
            return normalize_tokens(parts[rank], parts[rank]["x"], level, all_reduce)

        results = on_ranks(on_rank, len(parts))
        rows = {}
        for part, indices, result in zip(parts, split, results, strict=True):
            assert (result[~part["loss_mask"]] == 0).all()
            rows |= dict(zip(indices, part.with_fields(y=result).unpack("y"), strict=True))
        got = torch.cat([rows[i] for i in range(len(lengths))])[whole["loss_mask"]]
        torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-9)


def test_constant_advantages_stay_finite():
    x, whole = torch.full((8,), 1e6), torch.zeros(8, dtype=torch.int64)
    assert normalize(x, whole, whole, 1).tolist() == [0.0] * 8


def test_a_response_loses_nothing_before_the_buffer_and_everything_at_its_end():
    got = overlong_penalty(torch.tensor([1, 80, 85, 95, 100, 130]), longest=100, buffer=0.2)
    assert got.tolist() == pytest.approx([0, 0, -0.25, -0.75, -1, -1])
