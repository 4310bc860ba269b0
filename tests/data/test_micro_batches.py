import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from areal_mega.config.errors import UserError
from areal_mega.data.micro_batches import micro_batches
from areal_mega.data.packed import PackedBatch

lengths = st.lists(st.integers(1, 40), min_size=1, max_size=60)


def batch_of(sizes):
    return PackedBatch.pack([{"tokens": [0] * n, "loss_mask": [False] * n} for n in sizes])


@given(lengths, st.integers(40, 200))
def test_micro_batches_partition_the_batch_under_the_budget(sizes, budget):
    split = micro_batches(batch_of(sizes), budget)
    assert sorted(i for part in split for i in part) == list(range(len(sizes)))
    assert all(part == sorted(part) and part for part in split)
    tokens = [sum(sizes[i] for i in part) for part in split]
    assert max(tokens) <= budget
    assert max(tokens) - min(tokens) <= max(sizes)


@given(lengths, st.integers(40, 200))
def test_there_are_fewer_than_twice_as_many_micro_batches_as_the_tokens_need(sizes, budget):
    split = micro_batches(batch_of(sizes), budget)
    assert len(split) <= max(1, 2 * math.ceil(sum(sizes) / budget))


def test_a_sequence_longer_than_the_budget_is_named():
    with pytest.raises(UserError, match=r"sequence 1 .* 9 tokens.*policy\.max_tokens_per_micro_batch=8"):
        micro_batches(batch_of([3, 9]), 8)
