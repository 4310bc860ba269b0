import pytest
import torch

from areal_mega.policy.attention import PackedAttention, PackedSequences


def one_by_one(q, k, v, lengths):
    """Masked softmax attention of each sequence alone, float64. ``[T, heads, d]``."""
    repeat = q.shape[1] // k.shape[1]
    outputs = []
    for qs, ks, vs in zip(*(x.double().split(lengths) for x in (q, k, v)), strict=True):
        scores = torch.einsum("shd,thd->hst", qs, ks.repeat_interleave(repeat, 1)) / q.shape[-1] ** 0.5
        scores = scores.masked_fill(torch.ones(len(qs), len(qs)).triu(1).bool(), -torch.inf)
        outputs.append(torch.einsum("hst,thd->shd", scores.softmax(-1), vs.repeat_interleave(repeat, 1)))
    return torch.cat(outputs)


@pytest.mark.parametrize("lengths", [[1], [5, 1, 2, 33, 16, 17, 3, 3, 64, 8], [7, 7, 7]])
def test_each_sequence_attends_to_itself_alone(lengths):
    generator = torch.Generator().manual_seed(0)
    total = sum(lengths)
    q, k, v = (torch.randn(total, heads, 8, generator=generator, requires_grad=True) for heads in (4, 2, 2))
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0)
    packed = PackedSequences.plan(cu_seqlens, torch.device("cpu"), torch.float32)
    attention = PackedAttention(None, 1)
    got = attention(*(x.unsqueeze(1) for x in (q, k, v)), None, packed_seq_params=packed)
    assert got.shape == (total, 1, 32)
    expected = one_by_one(q, k, v, lengths)
    torch.testing.assert_close(got.view(total, 4, 8).double(), expected, rtol=0, atol=2e-6)
    weight = torch.randn(expected.shape, generator=generator)
    got_grads = torch.autograd.grad((got.view(total, 4, 8) * weight).sum(), (q, k, v))
    torch.testing.assert_close(got_grads, torch.autograd.grad((expected * weight).sum(), (q, k, v)), rtol=0, atol=1e-5)
    assert packed.positions.tolist() == [t for n in lengths for t in range(n)]


def test_padding_stays_below_the_tokens_it_serves():
    lengths = torch.arange(1, 200)
    cu_seqlens = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    packed = PackedSequences.plan(cu_seqlens, torch.device("cpu"), torch.float32)
    assert len(packed.groups) == 9  # 1, 2, 4, ..., 256
    assert sum(len(group.rows) for group in packed.groups) < 2 * lengths.sum()
