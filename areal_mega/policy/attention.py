"""Causal attention over packed sequences, as planned in `areal_mega.policy.packing`."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.tensor_parallel.mappings import gather_from_sequence_parallel_region
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from areal_mega.policy.packing import PackedSequences


class PackedAttention(torch.nn.Module):
    """Megatron's ``core_attention``: every token attends to the earlier tokens of its own sequence.

    Under context parallel each rank has some rows of every sequence, and gathers the keys and values of the others.
    """

    def __init__(self, config: Any, layer_number: int, *, softmax_scale: float | None = None, **_: Any) -> None:
        super().__init__()
        self.scale = softmax_scale

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: None,
        *,
        packed_seq_params: PackedSequences,
        **_: Any,
    ) -> Tensor:
        """query ``[L, 1, heads, d]``, key ``[L, 1, groups, d]``, value ``[L, 1, groups, v]`` → ``[L, 1, heads * v]``.

        Latent attention leaves out the dimension of size 1.
        """
        q, k, v = (x.flatten(0, -3) for x in (query, key, value))
        k, v = _of_all_context_ranks(k), _of_all_context_ranks(v)
        attend = self._padded if packed_seq_params.unpad is not None else self._varlen
        return attend(q, k, v, packed_seq_params).flatten(1).unsqueeze(1)

    def _padded(self, q: Tensor, k: Tensor, v: Tensor, packed: PackedSequences) -> Tensor:
        outputs = []
        for group in packed.groups:
            qs = q[group.queries].unflatten(0, (group.batch, -1)).transpose(1, 2)
            ks, vs = (x[group.keys].unflatten(0, (group.batch, -1)).transpose(1, 2) for x in (k, v))
            causal = group.mask is None
            out = F.scaled_dot_product_attention(
                qs, ks, vs, attn_mask=group.mask, is_causal=causal, scale=self.scale, enable_gqa=True
            )
            outputs.append(out.transpose(1, 2).flatten(0, 1))
        return torch.cat(outputs)[packed.unpad]

    def _varlen(self, q: Tensor, k: Tensor, v: Tensor, packed: PackedSequences) -> Tensor:
        if packed.keys is not None:
            k, v = k[packed.keys], v[packed.keys]
        width = v.shape[-1]
        # The kernel knows one head size only. A query's last key is the one at its own place (window_size).
        v = F.pad(v, (0, q.shape[-1] - width))
        out = varlen_attn(
            q,
            k,
            v,
            packed.cu_seqlens_q,
            packed.cu_seqlens_kv,
            packed.max_seqlen_q,
            packed.max_seqlen_kv,
            window_size=(-1, 0),
            scale=self.scale,
            enable_gqa=q.shape[1] != k.shape[1],
        )
        assert isinstance(out, Tensor)  # no auxiliary outputs were asked for
        return out[..., :width]


def _of_all_context_ranks(x: Tensor) -> Tensor:
    """``[cp * L, ...]``; backward sums the gradients of all ranks."""
    group = parallel_state.get_context_parallel_group(check_initialized=False)
    if group is None or group.size() == 1:
        return x
    return gather_from_sequence_parallel_region(x.contiguous(), group=group)
