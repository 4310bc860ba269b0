"""Which rows of a micro-batch a rank computes, and which of them may see each other.

Megatron sees a micro-batch as one row of tokens; where its sequences begin and end is known only in the plan made
here, once per micro-batch, and shared by all layers. The plan is also where parallelism along the sequence lives:

- Context parallel (CP) cuts every sequence, padded to a multiple of 2 CP, into 2 CP chunks. Rank r computes the
  chunks r and 2 CP - 1 - r: an early one with few keys and a late one with many, so that all ranks work alike.
- Sequence parallel cuts a rank's rows over TP, so their number is a multiple of TP.

Padding repeats the last token behind its sequence, where causal attention never looks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor


@dataclass(frozen=True)
class Slicing:
    """How a micro-batch is cut along its tokens: over ``cp`` ranks, of which this is ``cp_rank``, and over ``tp``
    ranks by sequence parallel (1 without it)."""

    cp: int = 1
    cp_rank: int = 0
    tp: int = 1


@dataclass(frozen=True)
class PaddedGroup:
    """Segments with a similar number of keys, to be computed as one padded batch.

    queries: ``[B * Q]`` this rank's row at each padded place. keys: ``[B * K]`` the same in the keys of all CP ranks.
    mask: ``[B, 1, Q, K]`` which keys a query sees; None: causal, query i sees the keys up to i.
    """

    queries: Tensor
    keys: Tensor
    batch: int
    mask: Tensor | None


@dataclass
class PackedSequences(PackedSeqParams):
    """A rank's L rows of a micro-batch; passes through Megatron's layers as ``packed_seq_params``.

    tokens: ``[L]`` the token of the micro-batch in each row. real: ``[L]`` False for padding. positions: ``[L]``
    places in the sequences.

    A segment is a run of rows with consecutive positions: a whole sequence, or one of its chunks under CP. groups:
    the padded batches that the segments are computed in, and unpad ``[L]`` where each row is found in their
    concatenation; for the variable-length kernel there are none, but keys: ``[keys of all segments]``, where they are
    found in the keys of all CP ranks (None: these are them).
    """

    tokens: Tensor = field(kw_only=True)
    real: Tensor = field(kw_only=True)
    positions: Tensor = field(kw_only=True)
    groups: list[PaddedGroup] = field(kw_only=True)
    unpad: Tensor | None = field(kw_only=True)
    keys: Tensor | None = field(kw_only=True)

    @classmethod
    def plan(
        cls, cu_seqlens: Tensor, device: torch.device, dtype: torch.dtype, slicing: Slicing | None = None
    ) -> PackedSequences:
        """The plan for attention in ``dtype`` on ``device``. cu_seqlens: ``[B + 1]``, on the CPU."""
        # torch's variable-length kernel exists for 16-bit types on GPUs only.
        padded = device.type == "cpu" or dtype == torch.float32
        segments = _Segments(cu_seqlens, slicing or Slicing())
        groups: list[PaddedGroup] = []
        unpad = keys = None
        if padded:
            groups, unpad = _padded_groups(segments, device)
        elif segments.cp > 1:
            keys = segments.all_keys().to(device)
        queries, seen = (_cumulative(x).to(device, torch.int32) for x in (segments.lengths, segments.seen))
        return cls(
            qkv_format="sbhd",  # one row of L tokens: keeps Megatron's rotary loop over sequences out
            cu_seqlens_q=queries,
            cu_seqlens_kv=seen,
            max_seqlen_q=int(segments.lengths.max()),
            max_seqlen_kv=int(segments.seen.max()),
            tokens=segments.tokens.to(device),
            real=segments.real.to(device),
            positions=segments.positions.to(device),
            groups=groups,
            unpad=unpad,
            keys=keys,
        )


class _Segments:
    """The S segments of a rank, in the order of its rows.

    lengths, starts, seen: ``[S]`` rows, first position, and keys (all positions up to the last one) of each.
    """

    def __init__(self, cu_seqlens: Tensor, slicing: Slicing) -> None:
        self.cp, rank = slicing.cp, slicing.cp_rank
        begins, real_lengths = cu_seqlens[:-1].long(), cu_seqlens.diff().long()
        chunks = 1 if self.cp == 1 else 2 * self.cp
        padded = (real_lengths + chunks - 1) // chunks * chunks
        padded[-1] += -int(padded.sum()) % math.lcm(chunks, self.cp * slicing.tp)
        self.chunk = padded // chunks
        mine = torch.tensor([0] if self.cp == 1 else [rank, 2 * self.cp - 1 - rank])
        self.sequence = torch.arange(len(padded)).repeat_interleave(len(mine))
        self.lengths = self.chunk.repeat_interleave(len(mine))
        self.starts = (self.chunk[:, None] * mine).flatten()
        self.seen = self.starts + self.lengths
        self.offsets = _cumulative(self.lengths)
        self.rows = int(self.offsets[-1])
        self.positions = _ramps(self.starts, self.lengths)
        begin, length = (x[self.sequence].repeat_interleave(self.lengths) for x in (begins, real_lengths))
        self.real = self.positions < length
        self.tokens = begin + torch.minimum(self.positions, length - 1)

    def key_rows(self, segment: Tensor, position: Tensor) -> Tensor:
        """Where the key of a sequence's position is, among the rows of all CP ranks, rank after rank."""
        if self.cp == 1:
            return self.offsets[segment] + position
        sequence = self.sequence[segment]
        length = self.chunk[sequence]
        chunk = position // length.clamp(min=1)
        late = chunk >= self.cp
        rank = torch.where(late, 2 * self.cp - 1 - chunk, chunk)
        return rank * self.rows + self.offsets[2 * sequence] + late * length + position % length.clamp(min=1)

    def all_keys(self) -> Tensor:
        """The key rows of all segments, end to end."""
        segment = torch.arange(len(self.seen)).repeat_interleave(self.seen)
        return self.key_rows(segment, _ramps(torch.zeros_like(self.seen), self.seen))


def _padded_groups(segments: _Segments, device: torch.device) -> tuple[list[PaddedGroup], Tensor]:
    """Group segments by the power of two at or above their number of keys; a group is padded to its longest."""
    groups, unpad, offset = [], torch.empty(segments.rows, dtype=torch.int64), 0
    length_class = segments.seen.clamp(min=1).double().log2().ceil()
    for c in length_class.unique():
        members = (length_class == c).nonzero()
        start, length, seen = (x[members] for x in (segments.starts, segments.lengths, segments.seen))
        column, key_column = torch.arange(int(length.max())), torch.arange(int(seen.max()))
        place = torch.minimum(column, length - 1)
        rows = segments.offsets[members] + place
        keys = segments.key_rows(members, torch.minimum(key_column, seen - 1))
        mask = None
        if segments.cp > 1:
            mask = (key_column <= (start + place)[:, :, None])[:, None].to(device)
        groups.append(PaddedGroup(rows.flatten().to(device), keys.flatten().to(device), len(members), mask))
        padded_place = offset + torch.arange(rows.numel()).view_as(rows)
        real = column < length
        unpad[rows[real]] = padded_place[real]
        offset += rows.numel()
    return groups, unpad.to(device)


def _cumulative(lengths: Tensor) -> Tensor:
    return torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])


def _ramps(starts: Tensor, lengths: Tensor) -> Tensor:
    """``start, start + 1, ...`` of each length, end to end."""
    ends = lengths.cumsum(0)
    shift = (starts - (ends - lengths)).repeat_interleave(lengths)
    return shift + torch.arange(len(shift))
