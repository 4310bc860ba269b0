import pytest
import torch

from areal_mega.policy.attention import PackedAttention
from areal_mega.policy.packing import PackedSequences, Slicing

CPU = torch.device("cpu")


def one_by_one(q, k, v, lengths):
    """Masked softmax attention of each sequence alone, float64. ``[T, heads, d]``."""
    repeat = q.shape[1] // k.shape[1]
    outputs = []
    for qs, ks, vs in zip(*(x.double().split(lengths) for x in (q, k, v)), strict=True):
        scores = torch.einsum("shd,thd->hst", qs, ks.repeat_interleave(repeat, 1)) / q.shape[-1] ** 0.5
        scores = scores.masked_fill(torch.ones(len(qs), len(qs)).triu(1).bool(), -torch.inf)
        outputs.append(torch.einsum("hst,thd->shd", scores.softmax(-1), vs.repeat_interleave(repeat, 1)))
    return torch.cat(outputs)


def plan(lengths, slicing=None, dtype=torch.float32, device=CPU):
    return PackedSequences.plan(torch.tensor([0, *lengths]).cumsum(0), device, dtype, slicing)


@pytest.mark.parametrize("lengths", [[1], [5, 1, 2, 33, 16, 17, 3, 3, 64, 8], [7, 7, 7]])
@pytest.mark.parametrize("width", [8, 6])
def test_each_sequence_attends_to_itself_alone(topology, lengths, width):
    """The values of latent attention are narrower than its keys."""
    generator = torch.Generator().manual_seed(0)
    total = sum(lengths)
    q, k, v = (
        torch.randn(total, heads, size, generator=generator, requires_grad=True)
        for heads, size in ((4, 8), (2, 8), (2, width))
    )
    packed = plan(lengths)
    attention = PackedAttention(None, 1)
    got = attention(*(x.unsqueeze(1) for x in (q, k, v)), None, packed_seq_params=packed)
    assert got.shape == (total, 1, 4 * width)
    expected = one_by_one(q, k, v, lengths)
    torch.testing.assert_close(got.view(total, 4, width).double(), expected, rtol=0, atol=2e-6)
    weight = torch.randn(expected.shape, generator=generator)
    got_grads = torch.autograd.grad((got.view_as(weight) * weight).sum(), (q, k, v))
    torch.testing.assert_close(got_grads, torch.autograd.grad((expected * weight).sum(), (q, k, v)), rtol=0, atol=1e-5)
    assert packed.positions.tolist() == [t for n in lengths for t in range(n)]


def test_padding_stays_below_the_tokens_it_serves():
    packed = plan(list(range(1, 200)))
    assert len(packed.groups) == 9  # 1, 2, 4, ..., 256
    assert sum(len(group.queries) for group in packed.groups) < 2 * sum(range(1, 200))


@pytest.mark.parametrize("cp", [1, 2, 3, 4])
@pytest.mark.parametrize("tp", [1, 2, 3])
@pytest.mark.parametrize("lengths", [[1], [5, 1, 12, 7], [8, 16]])
def test_the_ranks_share_the_rows(cp, tp, lengths):
    """Each token is on one context rank, all ranks have as many rows, a multiple of TP, and as much to attend to."""
    plans = [plan(lengths, Slicing(cp, rank, tp)) for rank in range(cp)]
    held = torch.cat([p.tokens[p.real] for p in plans])
    assert sorted(held.tolist()) == list(range(sum(lengths)))
    assert {len(p.tokens) for p in plans} == {len(plans[0].tokens)}
    assert len(plans[0].tokens) % tp == 0
    starts = torch.tensor([0, *lengths]).cumsum(0)
    for p in plans:
        begin = starts[torch.searchsorted(starts, p.tokens, right=True) - 1]
        assert torch.equal(p.positions[p.real], (p.tokens - begin)[p.real])
        assert p.tokens.max() < sum(lengths)
    work = {int((p.positions + 1).sum()) for p in plans}
    assert max(work) - min(work) <= sum(len(p.tokens) for p in plans)


@pytest.mark.parametrize("cp", [2, 3])
@pytest.mark.parametrize("lengths", [[1], [5, 1, 2, 33, 16], [24, 12]])
def test_context_ranks_see_the_keys_of_their_sequence(cp, lengths):
    """What every rank computes with the keys of all, put together, is the attention of whole sequences."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(sum(lengths), heads, 8, generator=generator) for heads in (4, 2, 2))
    plans = [plan(lengths, Slicing(cp, rank)) for rank in range(cp)]
    keys, values = (torch.cat([x[p.tokens] for p in plans]) for x in (k, v))
    got = torch.empty_like(q)
    for p in plans:
        out = PackedAttention(None, 1)._padded(q[p.tokens], keys, values, p)
        got[p.tokens[p.real]] = out[p.real]
    torch.testing.assert_close(got.double(), one_by_one(q, k, v, lengths), rtol=0, atol=2e-6)


@pytest.mark.parametrize("cp", [1, 2])
def test_the_variable_length_kernel_gets_the_same_rows_and_keys(cp):
    """Its plan, by plain attention: query i of n, with m keys, sees the first m - n + i + 1."""
    lengths = [5, 1, 12, 7]
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(sum(lengths), 2, 8, generator=generator) for _ in range(3))
    # The plan for 16 bits on a GPU, whose tensors can be made nowhere else.
    plans = [plan(lengths, Slicing(cp, rank), torch.bfloat16, torch.device("meta")) for rank in range(cp)]
    assert all(p.unpad is None and (p.keys is None) == (cp == 1) for p in plans)
    from areal_mega.policy import packing

    got = torch.empty_like(q)
    padded = [plan(lengths, Slicing(cp, rank)) for rank in range(cp)]
    keys, values = (torch.cat([x[p.tokens] for p in padded]) for x in (k, v))
    for rank, p in enumerate(padded):
        segments = packing._Segments(torch.tensor([0, *lengths]).cumsum(0), Slicing(cp, rank))
        rows = segments.all_keys()
        outputs = []
        for queries, seen in zip(
            q[p.tokens].split(segments.lengths.tolist()), rows.split(segments.seen.tolist()), strict=True
        ):
            mask = torch.ones(len(queries), len(seen)).tril(len(seen) - len(queries)).bool()
            scores = torch.einsum("shd,thd->hst", queries, keys[seen]).masked_fill(~mask, -torch.inf) / 8**0.5
            outputs.append(torch.einsum("hst,thd->shd", scores.softmax(-1), values[seen]))
        got[p.tokens[p.real]] = torch.cat(outputs)[p.real]
    torch.testing.assert_close(got.double(), one_by_one(q, k, v, lengths), rtol=0, atol=2e-6)
