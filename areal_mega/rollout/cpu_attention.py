"""Causal attention over the CPU engine's KV cache, for many sequences in one call."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

# Bounds the padded query-key pairs, thus the memory, of one call.
PAIRS_PER_CALL = 1 << 18


def attend(
    query: Tensor,
    output: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    rows: Tensor,
    query_lens: Tensor,
    seq_lens: Tensor,
    scaling: float | None,
) -> Tensor:
    """Causal attention of the last ``query_lens[i]`` tokens of each of B sequences.

    query, output: ``[T, heads, D]``, the sequences' new tokens end to end. k_cache, v_cache:
    ``[slots, kv_heads, D]``. rows: ``[B, longest]``, the cache slot of each token of a sequence. query_lens,
    seq_lens: ``[B]``; the new tokens count in both. Returns `output`, written in place.
    """
    starts = query_lens.cumsum(0) - query_lens
    for some in _chunks(query_lens, seq_lens):
        q_lens, k_lens = query_lens[some], seq_lens[some]
        q_offsets = torch.arange(int(q_lens.max()), device=query.device)
        k_offsets = torch.arange(int(k_lens.max()), device=query.device)
        is_query = q_offsets < q_lens[:, None]
        positions = (k_lens - q_lens)[:, None] + q_offsets
        # A padded query sees token 0, as every row of a softmax must see something.
        visible = k_offsets <= torch.where(is_query, positions, 0)[:, :, None]
        tokens = torch.where(is_query, starts[some, None] + q_offsets, 0)
        slots = torch.where(k_offsets < k_lens[:, None], rows[some, : len(k_offsets)], 0)
        attended = _attend_padded(query[tokens], k_cache[slots], v_cache[slots], visible, scaling)
        output[tokens[is_query]] = attended[is_query]
    return output


def _chunks(query_lens: Tensor, seq_lens: Tensor) -> Iterator[Tensor]:
    """Indices of sequences of like length: one, or at most `PAIRS_PER_CALL` padded pairs together."""
    order = torch.argsort(seq_lens, descending=True, stable=True)
    pairs = int(query_lens.max()) * seq_lens[order]
    start = 0
    while start < len(order):
        count = max(1, PAIRS_PER_CALL // int(pairs[start]))
        yield order[start : start + count]
        start += count


def _attend_padded(query: Tensor, keys: Tensor, values: Tensor, visible: Tensor, scaling: float | None) -> Tensor:
    """``query [B, Q, heads, D]`` over ``keys, values [B, K, kv_heads, D]`` where ``visible [B, Q, K]``.

    The query heads that share a key head become further queries of that head, so that keys are not repeated.
    """
    b, q, heads, d = query.shape
    kv_heads = keys.shape[2]
    grouped = query.view(b, q, kv_heads, heads // kv_heads, d).permute(0, 2, 3, 1, 4).reshape(b, kv_heads, -1, d)
    attended = scaled_dot_product_attention(
        grouped,
        keys.transpose(1, 2).to(query.dtype),
        values.transpose(1, 2).to(query.dtype),
        attn_mask=visible.repeat(1, heads // kv_heads, 1)[:, None],
        scale=scaling,
    )
    return attended.view(b, kv_heads, -1, q, values.shape[-1]).permute(0, 3, 1, 2, 4).flatten(2, 3)
