"""Batched attention over a KV cache against one softmax per query, in float64."""

import pytest
import torch

from areal_mega.rollout import cpu_attention


def attend_one_by_one(query, k_cache, v_cache, rows, query_lens, seq_lens, scaling):
    outputs, start = [], 0
    for row, q_len, k_len in zip(rows, query_lens.tolist(), seq_lens.tolist(), strict=True):
        keys, values = k_cache[row[:k_len]], v_cache[row[:k_len]]
        group = query.shape[1] // keys.shape[1]
        for i in range(q_len):
            seen = k_len - q_len + i + 1
            for head in range(query.shape[1]):
                scores = keys[:seen, head // group] @ query[start + i, head] * scaling
                outputs.append(scores.softmax(0) @ values[:seen, head // group])
        start += q_len
    return torch.stack(outputs).view_as(query)


@pytest.mark.parametrize("pairs_per_call", [1, 40, 1 << 18])
@pytest.mark.parametrize("query_lens", [[1, 1, 1, 1], [3, 1, 7, 2]], ids=["decode", "extend"])
def test_equals_attention_one_by_one(query_lens, pairs_per_call, monkeypatch):
    monkeypatch.setattr(cpu_attention, "PAIRS_PER_CALL", pairs_per_call)
    generator = torch.Generator().manual_seed(1)
    query_lens, seq_lens = torch.tensor(query_lens), torch.tensor([5, 1, 7, 9])
    heads, kv_heads, d, slots = 4, 2, 8, 32
    rows = torch.stack([torch.randperm(slots, generator=generator)[:12] for _ in seq_lens]).int()
    query = torch.randn(int(query_lens.sum()), heads, d, dtype=torch.float64, generator=generator)
    k_cache, v_cache = torch.randn(2, slots, kv_heads, d, dtype=torch.float64, generator=generator)

    attended = cpu_attention.attend(query, torch.empty_like(query), k_cache, v_cache, rows, query_lens, seq_lens, 0.3)

    expected = attend_one_by_one(query, k_cache, v_cache, rows, query_lens, seq_lens, 0.3)
    torch.testing.assert_close(attended, expected, rtol=1e-12, atol=1e-12)
