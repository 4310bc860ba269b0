"""Packed batches: all sequences of a batch end to end in one dimension, no padding.

The one alignment rule: ``field[t]`` describes token t, so ``logprobs[t] = log p(tokens[t] | tokens[<t])``
and the first token of every sequence has ``loss_mask = False``. A value ``values[t]`` is the critic's
estimate before token t was chosen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

ROUTED = "routed_experts"  # the field with the engine's choice of experts, [N, layers * k]


@dataclass(frozen=True)
class PackedBatch:
    """B sequences of together N tokens.

    tokens: ``[N]`` int64. cu_seqlens: ``[B + 1]`` int32, sequence i is ``tokens[cu[i]:cu[i + 1]]``.
    token_fields: per-token tensors ``[N]`` or ``[N, ...]`` (``loss_mask`` bool is always there).
    sequence_fields: per-sequence tensors ``[B]``; neighbours with the same ``unit`` belong together, see `units`.
    counts: global counts for normalisation, fixed before the first micro-batch runs.
    """

    tokens: Tensor
    cu_seqlens: Tensor
    token_fields: Mapping[str, Tensor]
    sequence_fields: Mapping[str, Tensor] = field(default_factory=dict)
    counts: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n, b = self.tokens.numel(), self.cu_seqlens.numel() - 1
        if b < 0 or self.cu_seqlens[0] != 0 or self.cu_seqlens[-1] != n:
            raise ValueError(f"cu_seqlens must run from 0 to {n}, the number of tokens")
        if "loss_mask" not in self.token_fields:
            raise ValueError("token_fields must contain loss_mask")
        for name, x in self.token_fields.items():
            if x.shape[:1] != (n,):
                raise ValueError(f"token field {name} has shape {tuple(x.shape)}, expected ({n},)")
        for name, x in self.sequence_fields.items():
            if x.shape != (b,):
                raise ValueError(f"sequence field {name} has shape {tuple(x.shape)}, expected ({b},)")

    @classmethod
    def pack(
        cls,
        sequences: Sequence[Mapping[str, Sequence | Tensor]],
        sequence_fields: Mapping[str, Sequence | Tensor] | None = None,
    ) -> PackedBatch:
        """Pack sequences; each is a mapping with ``tokens`` and per-token fields of the same length."""
        if not sequences:
            raise ValueError("cannot pack an empty list of sequences")
        names = list(sequences[0])
        columns = {k: torch.cat([_tensor(s[k]) for s in sequences]) for k in names}
        lengths = torch.tensor([len(s["tokens"]) for s in sequences])
        cu_seqlens = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]).to(torch.int32)
        tokens = columns.pop("tokens").to(torch.int64)
        return cls(tokens, cu_seqlens, columns, {k: _tensor(v) for k, v in (sequence_fields or {}).items()})

    def unpack(self, name: str) -> list[Tensor]:
        """The per-sequence pieces of ``tokens`` or of a token field."""
        return list(torch.split(self[name], self.lengths.tolist()))

    def __getitem__(self, name: str) -> Tensor:
        if name == "tokens":
            return self.tokens
        return self.token_fields[name] if name in self.token_fields else self.sequence_fields[name]

    def __contains__(self, name: str) -> bool:
        return name == "tokens" or name in self.token_fields or name in self.sequence_fields

    @property
    def lengths(self) -> Tensor:
        """``[B]`` tokens of each sequence."""
        return self.cu_seqlens[1:] - self.cu_seqlens[:-1]

    @property
    def num_sequences(self) -> int:
        return self.cu_seqlens.numel() - 1

    @property
    def num_tokens(self) -> int:
        return self.tokens.numel()

    @property
    def sequence_index(self) -> Tensor:
        """``[N]`` the sequence each token belongs to."""
        index = torch.arange(self.num_sequences, device=self.tokens.device)
        return torch.repeat_interleave(index, self.lengths.long())

    @property
    def units(self) -> list[list[int]]:
        """What a cut into micro-batches or over ranks may not separate: each sequence, or neighbours with the same
        ``unit`` (the two answers of a preference pair)."""
        if "unit" not in self:
            return [[i] for i in range(self.num_sequences)]
        _, sizes = torch.unique_consecutive(self["unit"], return_counts=True)
        return [part.tolist() for part in torch.arange(self.num_sequences).split(sizes.tolist())]

    @property
    def unit_lengths(self) -> list[int]:
        """Tokens of each of the `units`."""
        lengths = self.lengths.tolist()
        return [sum(lengths[i] for i in unit) for unit in self.units]

    def with_fields(self, **fields: Tensor) -> PackedBatch:
        """A batch with further (or replaced) per-token fields."""
        return replace(self, token_fields={**self.token_fields, **fields})

    def with_counts(self, **counts: float) -> PackedBatch:
        return replace(self, counts={**self.counts, **counts})

    def select(self, indices: Sequence[int] | Tensor) -> PackedBatch:
        """The batch of the given sequences, in the given order; counts are kept."""
        indices = torch.as_tensor(indices, dtype=torch.int64)
        lengths = self.lengths.long()[indices]
        cu_seqlens = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
        starts = self.cu_seqlens.long()[indices]
        at = torch.repeat_interleave(starts - cu_seqlens[:-1], lengths) + torch.arange(int(cu_seqlens[-1]))
        return PackedBatch(
            self.tokens[at],
            cu_seqlens.to(torch.int32),
            {k: v[at] for k, v in self.token_fields.items()},
            {k: v[indices] for k, v in self.sequence_fields.items()},
            self.counts,
        )

    def to(self, device: torch.device | str) -> PackedBatch:
        return PackedBatch(
            self.tokens.to(device),
            self.cu_seqlens.to(device),
            {k: v.to(device) for k, v in self.token_fields.items()},
            {k: v.to(device) for k, v in self.sequence_fields.items()},
            self.counts,
        )


def _tensor(x: Sequence | Tensor) -> Tensor:
    x = torch.as_tensor(x)
    return x.to(torch.float32) if x.dtype == torch.float64 else x
