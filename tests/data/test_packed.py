import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from areal_mega.data import PackedBatch
from areal_mega.data.mini_batches import mini_batches

lengths = st.lists(st.integers(1, 9), min_size=1, max_size=12)


def batch_of(sizes):
    rows = []
    for i, n in enumerate(sizes):
        rows.append({"tokens": [100 * i + t for t in range(n)], "loss_mask": [t > 0 for t in range(n)]})
    return PackedBatch.pack(rows, {"reward": [float(i) for i in range(len(sizes))]})


@given(lengths)
def test_unpack_gives_back_what_was_packed(sizes):
    batch = batch_of(sizes)
    rows = [[100 * i + t for t in range(n)] for i, n in enumerate(sizes)]
    assert [t.tolist() for t in batch.unpack("tokens")] == rows
    assert batch.lengths.tolist() == sizes
    assert batch.sequence_index.tolist() == [i for i, n in enumerate(sizes) for _ in range(n)]


@given(lengths, st.randoms())
def test_select_takes_sequences_with_all_their_fields(sizes, rng):
    batch = batch_of(sizes)
    chosen = rng.sample(range(len(sizes)), rng.randint(1, len(sizes)))
    part = batch.select(chosen)
    whole = batch.unpack("tokens")
    assert [t.tolist() for t in part.unpack("tokens")] == [whole[i].tolist() for i in chosen]
    assert part["reward"].tolist() == [float(i) for i in chosen]
    assert torch.equal(part["loss_mask"], part.tokens % 100 > 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cu_seqlens": torch.tensor([0, 2], dtype=torch.int32)}, "cu_seqlens"),
        ({"token_fields": {}}, "loss_mask"),
        ({"token_fields": {"loss_mask": torch.ones(3, dtype=torch.bool), "x": torch.ones(2)}}, "token field x"),
        ({"sequence_fields": {"reward": torch.ones(2)}}, "sequence field reward"),
    ],
)
def test_fields_that_do_not_fit_are_refused(change, message):
    fields = {
        "tokens": torch.arange(3),
        "cu_seqlens": torch.tensor([0, 3], dtype=torch.int32),
        "token_fields": {"loss_mask": torch.ones(3, dtype=torch.bool)},
    }
    with pytest.raises(ValueError, match=message):
        PackedBatch(**{**fields, **change})


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 5), st.integers(0, 99), st.randoms())
def test_mini_batches_partition_the_batch_the_same_way_for_every_layout(count, ranks, each, seed, rng):
    sizes = [rng.randint(1, 50) for _ in range(count * ranks * each)]
    plan = mini_batches(sizes, count, ranks, seed)
    alone = mini_batches(sizes, count, 1, seed)
    assert sorted(i for m in plan for share in m for i in share) == list(range(len(sizes)))
    assert all(sum(map(len, m)) == ranks * each and all(m) for m in plan)
    for cut, whole in zip(plan, alone, strict=True):
        assert sorted(i for share in cut for i in share) == sorted(whole[0])


@given(st.integers(1, 3), st.integers(1, 3), st.integers(0, 20), st.integers(0, 9))
def test_any_number_of_sequences_is_cut_alike_for_every_layout(count, ranks, more, seed):
    sizes = [1 + i % 7 for i in range(2 * count * ranks + more)]
    plan, alone = mini_batches(sizes, count, ranks, seed), mini_batches(sizes, count, 1, seed)
    assert sorted(i for m in plan for share in m for i in share) == list(range(len(sizes)))
    assert all(share for m in plan for share in m)
    totals = [sum(map(len, m)) for m in plan]
    assert max(totals) - min(totals) <= 1
    for cut, whole in zip(plan, alone, strict=True):
        assert sorted(i for share in cut for i in share) == sorted(whole[0])


def test_shares_are_balanced():
    [[left, right]] = mini_batches([100, 1, 1, 100, 50, 50], 1, 2, seed=3)
    sizes = [100, 1, 1, 100, 50, 50]
    assert sum(sizes[i] for i in left) == sum(sizes[i] for i in right)
