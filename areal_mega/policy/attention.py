"""Causal attention over packed sequences.

Megatron sees a micro-batch as one row of T tokens; where the sequences begin and end is known only here and
in the rotary positions. The bookkeeping is done once per micro-batch, in `PackedSequences.plan`, and shared
by all layers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn


@dataclass(frozen=True)
class PaddedGroup:
    """Sequences of similar length, to be computed as one padded batch.

    rows: ``[B * S]`` the token at each padded place; a sequence's last token is repeated as padding.
    batch: B.
    """

    rows: Tensor
    batch: int


@dataclass
class PackedSequences(PackedSeqParams):
    """Where the sequences of a micro-batch lie; passes through Megatron's layers as ``packed_seq_params``.

    positions: ``[T]`` place of each token in its sequence. groups: the padded batches that the sequences
    are computed in, and unpad ``[T]`` where each token is found in their concatenation; none for the
    variable-length kernel.
    """

    positions: Tensor = field(kw_only=True)
    groups: list[PaddedGroup] = field(kw_only=True)
    unpad: Tensor | None = field(kw_only=True)

    @classmethod
    def plan(cls, cu_seqlens: Tensor, device: torch.device, dtype: torch.dtype) -> PackedSequences:
        """The plan for attention in ``dtype`` on ``device``. cu_seqlens: ``[B + 1]``, on the CPU."""
        # torch's variable-length kernel exists for 16-bit types on GPUs only.
        padded = device.type == "cpu" or dtype == torch.float32
        starts, lengths = cu_seqlens[:-1].long(), cu_seqlens.diff().long()
        positions = torch.arange(int(cu_seqlens[-1])) - torch.repeat_interleave(starts, lengths)
        groups, unpad = _padded_groups(starts, lengths, device) if padded else ([], None)
        longest = int(lengths.max())
        cu_seqlens = cu_seqlens.to(device, torch.int32)
        return cls(
            qkv_format="sbhd",  # one row of T tokens: keeps Megatron's rotary loop over sequences out
            cu_seqlens_q=cu_seqlens,
            cu_seqlens_kv=cu_seqlens,
            max_seqlen_q=longest,
            max_seqlen_kv=longest,
            positions=positions.to(device),
            groups=groups,
            unpad=unpad,
        )


class PackedAttention(torch.nn.Module):
    """Megatron's ``core_attention``: every token attends to the earlier tokens of its own sequence."""

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
        """query ``[T, 1, heads, d]``, key and value ``[T, 1, groups, d]`` → ``[T, 1, heads * d]``."""
        q, k, v = query.squeeze(1), key.squeeze(1), value.squeeze(1)
        attend = self._padded if packed_seq_params.unpad is not None else self._varlen
        return attend(q, k, v, packed_seq_params).flatten(1).unsqueeze(1)

    def _padded(self, q: Tensor, k: Tensor, v: Tensor, packed: PackedSequences) -> Tensor:
        outputs = []
        for group in packed.groups:
            # Padding stands behind a sequence, where causal attention never looks.
            qs, ks, vs = (x[group.rows].unflatten(0, (group.batch, -1)).transpose(1, 2) for x in (q, k, v))
            out = F.scaled_dot_product_attention(qs, ks, vs, is_causal=True, scale=self.scale, enable_gqa=True)
            outputs.append(out.transpose(1, 2).flatten(0, 1))
        return torch.cat(outputs)[packed.unpad]

    def _varlen(self, q: Tensor, k: Tensor, v: Tensor, packed: PackedSequences) -> Tensor:
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
        return out


def _padded_groups(starts: Tensor, lengths: Tensor, device: torch.device) -> tuple[list[PaddedGroup], Tensor]:
    """Group sequences by the power of two at or above their length; a group is padded to its longest."""
    groups, unpad, offset = [], torch.empty(int(lengths.sum()), dtype=torch.int64), 0
    length_class = lengths.clamp(min=1).double().log2().ceil()
    for c in length_class.unique():
        members = (length_class == c).nonzero().squeeze(1)
        start, length = starts[members, None], lengths[members, None]
        width = int(length.max())
        column = torch.arange(width)
        rows = start + torch.minimum(column, length - 1)
        groups.append(PaddedGroup(rows.flatten().to(device), len(members)))
        place = offset + torch.arange(rows.numel()).view_as(rows)
        real = column < length
        unpad[rows[real]] = place[real]
        offset += rows.numel()
    return groups, unpad.to(device)
