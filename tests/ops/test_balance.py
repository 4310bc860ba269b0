"""Partitions of sequences: against all possible partitions where they are few, and against proven bounds."""

from __future__ import annotations

import time
from itertools import product

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from kernels import Kernel, kernels_of

from areal_mega import ops

BACKENDS = ("reference", "cpp")
each_backend = pytest.mark.parametrize("backend", BACKENDS)

few_lengths = st.lists(st.integers(0, 30), max_size=6)
lengths = st.lists(st.integers(0, 1000), max_size=60)


def sums_of(costs: list[int], part_of: torch.Tensor, parts: int) -> list[int]:
    return torch.zeros(parts, dtype=torch.int64).index_add(0, part_of, torch.tensor(costs).long()).tolist()


def least_largest_sum(costs: list[int], parts: int) -> int:
    return min(
        max(sum(c for c, p in zip(costs, choice, strict=True) if p == part) for part in range(parts))
        for choice in product(range(parts), repeat=len(costs))
    )


def least_bins(costs: list[int], budget: int) -> int:
    return next((k for k in range(1, len(costs) + 1) if least_largest_sum(costs, k) <= budget), 0)


@given(few_lengths, st.integers(1, 4))
def test_the_largest_part_is_within_a_third_of_the_best(costs, parts):
    """Michiels et al. (2003): at most 4/3 - 1/(3 parts) of the least possible."""
    best = least_largest_sum(costs, parts)
    for backend in BACKENDS:
        largest = max(sums_of(costs, ops.balance(costs, parts, backend=backend), parts))
        assert best <= largest
        assert 3 * parts * largest <= (4 * parts - 1) * best


@given(lengths, st.integers(1, 70))
@example([10**9] + [1] * 50, 4)
@example([7] * 23, 5)
def test_no_two_parts_differ_by_more_than_the_longest(costs, parts):
    for backend in BACKENDS:
        part_of = ops.balance(costs, parts, backend=backend)
        sums = sums_of(costs, part_of, parts)
        assert sums == sorted(sums, reverse=True)
        assert max(sums) - min(sums) <= max(costs, default=0)
        assert len(set(part_of.tolist())) == min(parts, len(costs))


@given(st.integers(1, 9), st.integers(0, 9), st.randoms())
def test_equal_counts(parts, each, rng):
    costs = [rng.randint(0, 500) for _ in range(parts * each)]
    for backend in BACKENDS:
        part_of = ops.balance(costs, parts, equal_counts=True, backend=backend)
        assert part_of.bincount(minlength=parts).tolist() == [each] * parts
        sums = sums_of(costs, part_of, parts)
        assert max(sums) - min(sums) <= max(costs, default=0)


@given(st.integers(1, 40), st.integers(0, 120), st.booleans(), st.integers(0, 2**31))
def test_empty_parts_that_are_not_stored_change_nothing(parts, count, equal, seed):
    """Numbers so large that no two sums are equal: then the method leaves no choice."""
    count -= count % parts if equal else 0
    costs = torch.randint(2**40, (count,), generator=torch.Generator().manual_seed(seed))
    expected = ops.balance(costs, parts, equal, backend="reference")
    assert torch.equal(ops.balance(costs, parts, equal, backend="cpp"), expected)


@each_backend
def test_equal_lengths_are_dealt_evenly_and_the_same_way_each_time(backend):
    part_of = ops.balance([5] * 12, 4, backend=backend)
    assert part_of.bincount().tolist() == [3] * 4
    assert torch.equal(part_of, ops.balance([5] * 12, 4, backend=backend))


def test_differencing_beats_longest_first():
    assert sorted(sums_of([8, 7, 6, 5, 4], ops.balance([8, 7, 6, 5, 4], 2), 2)) == [14, 16]
    costs = torch.randint(1, 32768, (4096,), generator=torch.Generator().manual_seed(0)).tolist()
    sums = sums_of(costs, ops.balance(costs, 16), 16)
    assert max(sums) - min(sums) <= 2


@given(few_lengths, st.integers(30, 60))
def test_first_fit_needs_few_more_bins_than_the_best(costs, budget):
    best = least_bins(costs, budget)
    for backend in BACKENDS:
        bin_of = ops.first_fit(costs, budget, backend=backend)
        bins = len(set(bin_of.tolist()))
        assert 9 * bins <= 11 * best + 6


@given(lengths, st.integers(1000, 4000))
def test_first_fit_keeps_the_budget_and_agrees_with_its_definition(costs, budget):
    bin_of = ops.first_fit(costs, budget)
    assert torch.equal(bin_of, ops.first_fit(costs, budget, backend="reference"))
    bins = len(set(bin_of.tolist()))
    assert set(bin_of.tolist()) == set(range(bins))
    sums = sums_of(costs, bin_of, bins)
    assert max(sums, default=0) <= budget
    assert sum(2 * s <= budget for s in sums) <= 1  # the later of two such bins would have gone into the first


@pytest.mark.parametrize(
    "plan",
    [
        lambda x: ops.balance(x, 64),
        lambda x: ops.balance(x, 512),
        lambda x: ops.balance(x, 512, equal_counts=True),
        lambda x: ops.first_fit(x, 65536),
    ],
    ids=["64_parts", "512_parts", "512_equal", "first_fit"],
)
def test_a_million_lengths_are_planned_in_a_moment(plan):
    """About a third of a second; the bound is for loaded machines, and far below anything quadratic."""
    costs = torch.randint(1, 32768, (512 * 2048,), generator=torch.Generator().manual_seed(0))
    begin = time.process_time()
    part_of = plan(costs)
    assert time.process_time() - begin < 10
    sums = torch.zeros(int(part_of.max()) + 1, dtype=torch.int64).index_add(0, part_of, costs)
    assert sums.sum() == costs.sum()
    if len(sums) <= 512:
        assert sums.max() - sums.min() <= 32768


MISTAKES = {
    "negative": (lambda: ops.balance([3, -1], 2), r"lengths\[1\] is -1: expected 0 or more"),
    "parts": (lambda: ops.balance([3], 0), "parts is 0: expected 1 or more"),
    "not_divisible": (lambda: ops.balance([3, 4, 5], 2, equal_counts=True), "3 sequences cannot be cut into 2 parts"),
    "above_budget": (lambda: ops.first_fit([3, 9, 9], 8), r"lengths\[1\] is 9: expected at most the budget, 8"),
    "negative_in_bins": (lambda: ops.first_fit([-3], 8), r"lengths\[0\] is -3"),
    "floats": (lambda: ops.balance(torch.zeros(3), 2), "lengths is torch.float32.* expected integers"),
    "shape": (lambda: ops.balance(torch.zeros(3, 1).int(), 2), r"lengths .* shape \[3, 1\]: expected .* \[S\]"),
    "overflow": (lambda: ops.balance([2**61] * 3, 2), "does not fit into 62 bits"),
    "backend": (lambda: ops.balance([1], 1, backend="triton"), "balance has no such backend"),
}


@pytest.mark.parametrize(("call", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_mistakes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("kernel", kernels_of(ops.balance, *BACKENDS).values())
def test_int32_and_strided_lengths(kernel: Kernel):
    x = torch.tensor([[4, 9], [3, 9], [2, 9], [1, 9]], dtype=torch.int32)[:, 0]
    assert sums_of([4, 3, 2, 1], kernel(x, 2), 2) == [5, 5]
